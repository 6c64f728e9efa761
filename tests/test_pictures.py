"""Pictures that stand for vectors: of a source of images, or of a file of paths, matched row by row or refused."""

from __future__ import annotations

import csv
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf

from sela_tf.commands.pictures import load_pictures
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.stores import Arrays
from sela_tf.settings.commands import ReportConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import Data

CONFIG = SelaConfig(dataset="features:v.npy")
HELD_OUT = np.array([1, 4, 8])


def _vectors(rows: np.ndarray, *, own_source: bool = False) -> ImageSet:
    vectors = np.zeros((len(rows), 3), np.float32)
    return ImageSet(name="v", channels=3, store=Arrays(vectors), image_size=(), source_rows=None if own_source else rows)


@pytest.fixture
def data() -> Data:
    """Nine vectors, of which three are held out."""
    training = np.setdiff1d(np.arange(9), HELD_OUT)
    return Data(_vectors(training), _vectors(HELD_OUT), (), np.zeros(3), np.ones(3))


@pytest.fixture
def folder(tmp_path) -> pathlib.Path:
    """Nine pictures whose brightness is ten times their number, of several sizes."""
    (tmp_path / "pictures").mkdir()
    for i in range(9):
        pixels = np.full((8 + i, 9, 1), 10 * i, np.uint8)
        (tmp_path / "pictures" / f"{i}.png").write_bytes(tf.io.encode_png(pixels).numpy())
    return tmp_path / "pictures"


def _load(images: object, data: Data):
    return load_pictures(ReportConfig(workdir="run", images=str(images)), CONFIG, data)


def _brightness(images: ImageSet, size: tuple[int, ...]) -> list[int]:
    batches = inference_batches(images, size=size, batch_size=100, in_order=True)
    return [round(float(image.mean()) / 10) for views, _ in batches for image in views.numpy()]


def _written(path: pathlib.Path, paths: list[str], column: str = "path") -> pathlib.Path:
    if path.suffix == ".txt":
        path.write_text("\n".join(paths))
    elif path.suffix == ".parquet":
        pa.parquet.write_table(pa.table({column: paths, "n": list(range(len(paths)))}), path)
    else:
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([[column, "n"], *([each, i] for i, each in enumerate(paths))])
    return path


def test_a_folder_gives_them_in_the_order_of_its_names(folder, data):
    found = _load(folder, data)
    assert _brightness(found.train, found.size) == [0, 2, 3, 5, 6, 7]
    assert _brightness(found.held_out, found.size) == [1, 4, 8]


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".txt"])
def test_a_file_of_paths_gives_them_in_its_own_order(ending, folder, data):
    paths = [str(folder / f"{i}.png") if i % 2 else f"pictures/{i}.png" for i in reversed(range(9))]
    found = _load(_written(folder.parent / f"list{ending}", paths), data)
    assert _brightness(found.train, found.size) == [8, 6, 5, 3, 2, 1]
    assert _brightness(found.held_out, found.size) == [7, 4, 0]


def test_held_out_vectors_of_another_source_come_after_the_others(folder, data):
    apart = data._replace(train=_vectors(np.arange(6), own_source=True), held_out=_vectors(np.arange(3), own_source=True))
    found = _load(folder, apart)
    assert _brightness(found.train, found.size) == [0, 1, 2, 3, 4, 5]
    assert _brightness(found.held_out, found.size) == [6, 7, 8]


def test_what_cannot_be_matched_is_refused(folder, data):
    (folder / "8.png").unlink()
    with pytest.raises(ConfigError, match=r"has 8 pictures for 9 vectors: the i-th picture"):
        _load(folder, data)
    for name, paths, column, match in (
        ("a.csv", ["pictures/1.png"] * 9, "file", r"no column 'path', but 'file', 'n'"),
        ("b.csv", ["pictures/1.png", "pictures/x.png"], "path", r"row 1: there is no file '.*x\.png'"),
        ("c.parquet", ["pictures/1.png"] * 3, "path", r"has 3 pictures for 9 vectors"),
    ):
        with pytest.raises(ConfigError, match=match):
            _load(_written(folder.parent / name, paths, column), data)
    (folder / "0.png").write_text("no picture")
    with pytest.raises(ConfigError, match=r"row 2: '.*0\.png' cannot be read"):
        _load(_written(folder.parent / "e.csv", [f"pictures/{i}.png" for i in (2, 1, 0)]), data)
    (folder.parent / "d.parquet").write_text("no parquet")
    with pytest.raises(ConfigError, match="cannot be read"):
        _load(folder.parent / "d.parquet", data)


def test_a_run_on_images_has_pictures_itself(folder, data):
    images = ImageSet(name="digits", channels=1, store=Arrays(np.zeros((6, 8, 8, 1), np.uint8)), image_size=(8, 8))
    with pytest.raises(ConfigError, match="has images itself: leave it out"):
        _load(folder, data._replace(train=images))
