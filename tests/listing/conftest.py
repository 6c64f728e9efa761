"""Folders of images whose files are counted as they are decoded."""

from __future__ import annotations

import pathlib

import pytest
import tensorflow as tf
from served import encoded, picture


@pytest.fixture
def folder(tmp_path, rng) -> pathlib.Path:
    """Twelve images of one size in all four kinds, two damaged ones, one that is not read, and a text."""
    root = tmp_path / "images"
    for i in range(12):
        kind = ("PNG", "JPEG", "BMP", "GIF")[i % 4]
        (root / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        (root / "ab"[i % 2] / f"{i:02d}.{kind.lower()}").write_bytes(encoded(picture(rng, "RGB", (16, 20)), kind))
    whole = encoded(picture(rng, "RGB", (30, 30)), "JPEG")
    (root / "a" / "cut.jpg").write_bytes(whole[: len(whole) - 200])
    (root / "b" / "empty.png").write_bytes(b"")
    (root / "b" / "other.tiff").write_bytes(encoded(picture(rng, "RGB", (9, 9)), "TIFF"))
    (root / "notes.txt").write_text("no image")
    return root


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Grows with each file that is decoded, and with each graph that would decode."""
    calls: list[str] = []
    for name in ("decode_image", "decode_jpeg", "decode_png"):
        real = getattr(tf.io, name)
        monkeypatch.setattr(
            tf.io, name, lambda *args, real=real, name=name, **options: calls.append(name) or real(*args, **options)
        )
    return calls
