"""Parts of a file of labels that viewers show: nearest images, small pictures, TensorBoard's projector."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.parse
import urllib.request

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow as tf

from sela_tf.reporting import small_pictures
from sela_tf.reporting.projector import write_projector
from sela_tf.reporting.small_pictures import jpeg_files, sprite
from sela_tf.serving.label_writer import LabelWriter
from sela_tf.settings.commands import LabelConfig
from sela_tf.settings.fields import ConfigError


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "small"), [((8, 6), (64, 48)), ((24, 192), (12, 96))])
def test_pictures_are_small_and_show_the_image(size, small, channels, rng):
    # Flat images are the same after any resizing, and nearly so after the jpeg's loss.
    values = rng.integers(-20, 275, (5, 1, 1, channels)).astype(np.float32)
    pictures = jpeg_files(tf.constant(np.broadcast_to(values, (5, *size, channels))))
    for value, picture in zip(values, pictures, strict=True):
        pixels = tf.io.decode_jpeg(picture).numpy()
        assert pixels.shape == (*small, channels)
        assert np.abs(pixels - np.clip(value, 0, 255)).max() <= 3


@pytest.mark.parametrize(("limit", "side"), [(8192, 64), (80, 20)])
def test_a_sprite_holds_the_pictures_row_by_row_within_its_limit(limit, side, monkeypatch):
    monkeypatch.setattr(small_pictures, "_SPRITE", limit)
    grays = np.arange(13, dtype=np.float32) * 15
    pictures = jpeg_files(tf.constant(np.broadcast_to(grays[:, None, None, None], (13, 96, 48, 1))))
    sheet, cell = sprite(pictures)
    assert cell == (side, side // 2)
    pixels = tf.io.decode_png(sheet).numpy()
    assert pixels.shape == (4 * side, 4 * side // 2, 1)
    cells = pixels.reshape(4, side, 4, side // 2).swapaxes(1, 2).reshape(16, -1)
    assert np.abs(cells[:13] - grays[:, np.newaxis]).max() <= 2
    assert (cells[13:] == 0).all()


def test_structs_of_lists_bytes_and_missing_text(tmp_path):
    columns = {
        "neighbours": {"ids": np.array([[1], [0]]), "distances": np.array([[0.5], [0.5]], np.float32)},
        "picture": {"bytes": np.array([b"\0a", b"b"], object), "path": np.array(["/a.png", None], object)},
    }
    with LabelWriter(tmp_path / "labels.parquet") as writer:
        writer.write(columns)
    assert pyarrow.parquet.read_table(tmp_path / "labels.parquet").to_pylist() == [
        {"neighbours": {"ids": [1], "distances": [0.5]}, "picture": {"bytes": b"\0a", "path": "/a.png"}},
        {"neighbours": {"ids": [0], "distances": [0.5]}, "picture": {"bytes": b"b", "path": None}},
    ]


NAMES = ["plain.png", "a\tb\nc\r\u2028d.png", 'ä "quoted" \\.png', "odd\udc80.png"]


@pytest.fixture
def projected(tmp_path, rng):
    """(directory, embedding) of four points with pictures, one of them with a name that would break a table."""
    embedding = rng.normal(size=(4, 3)).astype(np.float32)
    columns = {
        "name": np.array(NAMES, object),
        "cluster": np.array([3, 1, 0, 2]),
        "num_changes": np.array([1, np.nan, 0, 2], np.float32),
    }
    pictures = jpeg_files(tf.constant(rng.uniform(0, 255, (4, 8, 8, 1)), tf.float32))
    directory = tmp_path / "new" / "projector"
    write_projector(directory, embedding, columns, pictures)
    return directory, embedding


LINES = [
    "name\tcluster\tnum_changes",
    "plain.png\t3\t1",
    "a b c d.png\t1\t",
    'ä "quoted" \\.png\t0\t0',
    "odd?.png\t2\t2",
]


def test_a_projector_has_a_line_for_each_point_whatever_its_name(projected):
    directory, embedding = projected
    assert (directory / "metadata.tsv").read_text("utf-8").split("\n") == [*LINES, ""]
    np.testing.assert_allclose(np.loadtxt(directory / "embedding.tsv"), embedding, rtol=1e-5)
    assert sorted(path.name for path in directory.iterdir()) == [
        "embedding.tsv",
        "metadata.tsv",
        "projector_config.pbtxt",
        "sprite.png",
    ]


def test_a_projector_of_vectors_has_no_sprite(tmp_path):
    write_projector(tmp_path, np.eye(2), {"index": np.arange(2), "cluster": np.arange(2)}, None)
    assert not (tmp_path / "sprite.png").exists()
    assert "sprite" not in (tmp_path / "projector_config.pbtxt").read_text()


def test_settings_of_viewers_are_checked():
    with pytest.raises(ValueError, match=r"neighbours"):
        LabelConfig(workdir="x", output="y.parquet", neighbours=-1)
    with pytest.raises(ConfigError, match="`neighbours` must be at most 1000"):
        LabelConfig(workdir="x", output="y.parquet", neighbours=1001)


@pytest.mark.slow
def test_tensorboard_serves_the_projector(projected):
    directory, embedding = projected
    command = [sys.executable, "-m", "tensorboard.main", f"--logdir={directory}", "--port=0", "--host=127.0.0.1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            address = next(found[0] for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))

            def get(what: str, **query: str) -> bytes:
                url = f"{address}data/plugin/projector/{what}?{urllib.parse.urlencode(query)}"
                with urllib.request.urlopen(url, timeout=60) as answer:
                    return answer.read()

            (run,) = json.loads(get("runs"))
            (shown,) = json.loads(get("info", run=run))["embeddings"]
            assert shown["tensorShape"] == [4, 3]
            assert shown["sprite"]["singleImageDim"] == [64, 64]
            name = shown["tensorName"]
            assert get("metadata", run=run, name=name).decode() == "\n".join([*LINES, ""])
            np.testing.assert_allclose(
                np.frombuffer(get("tensor", run=run, name=name), np.float32).reshape(4, 3), embedding, rtol=1e-5
            )
            assert get("sprite_image", run=run, name=name) == (directory / "sprite.png").read_bytes()
        finally:
            process.terminate()
