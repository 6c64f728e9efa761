"""Images as clients send them, and what a served model says of them."""

from __future__ import annotations

import io

import numpy as np
import tensorflow as tf
from PIL import Image


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(rng, mode: str = "RGB", size: tuple[int, int] = (20, 14)) -> Image.Image:
    depth = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (3,)}[mode]
    return Image.fromarray(rng.integers(0, 256, (*size, *depth), dtype=np.uint8)).convert(mode)


def ask(loaded, signature: str, values) -> dict[str, np.ndarray]:
    name = {"serving_default": "image_bytes", "images": "images", "examples": "examples"}[signature]
    values = tf.constant(values, tf.float32 if signature == "images" else tf.string)
    return {key: value.numpy() for key, value in loaded.signatures[signature](**{name: values}).items()}


def is_blank(answers: dict[str, np.ndarray], row: int) -> bool:
    return (
        not answers["valid"][row]
        and (answers["cluster"][row] == -1).all()
        and not any(answers[name][row].any() for name in ("embedding", "probability", "margin"))
    )
