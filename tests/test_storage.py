"""Full disks: what the libraries that write raise there, and that nothing is lost and nothing left."""

from __future__ import annotations

import errno
import gc
import os
import pathlib
import sys
from collections.abc import Callable

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tensorflow as tf
from disks import full
from PIL import Image

from sela_tf.cli.errors import exit_status, told_to_user
from sela_tf.data.errors import SourceError
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.files.archives import write_npz
from sela_tf.files.atomic import whole_directory, whole_file, write_whole
from sela_tf.files.remote import whole_remote_file
from sela_tf.files.scratch import scratch_array
from sela_tf.files.storage import StorageError, storage_errno

_VALUES = np.random.default_rng(0).normal(size=300_000)
"""More than a small disk holds."""


def _network() -> keras.Model:
    return keras.Sequential([keras.layers.Input((500,)), keras.layers.Dense(1000), keras.layers.Dense(10)])


def _parquet(path: pathlib.Path) -> None:
    batch = pa.record_batch({"a": pa.array(_VALUES[:100_000])})
    with pa.parquet.ParquetWriter(str(path), batch.schema) as writer:
        for _ in range(3):
            writer.write_batch(batch)


def _tensorflow(path: pathlib.Path) -> None:
    with tf.io.gfile.GFile(str(path), "wb") as file:
        file.write(_VALUES.tobytes())


def _records(path: pathlib.Path) -> None:
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(_VALUES.tobytes())


_WRITERS: dict[str, Callable[[pathlib.Path], object]] = {
    "text": lambda path: path.write_text("x" * 2_000_000),
    "one.npz": lambda path: write_npz(path, {"values": _VALUES}),
    "many.npz": lambda path: write_npz(path, {str(i): values for i, values in enumerate(np.split(_VALUES, 100))}),
    "table.parquet": _parquet,
    "of_tensorflow": _tensorflow,
    "records": _records,
    "model.weights.h5": lambda path: _network().save_weights(path),
    "picture.png": lambda path: Image.fromarray(_VALUES.view(np.uint8).reshape(1000, 800, 3)).save(path),
}


@pytest.fixture
def printed(monkeypatch) -> list[str]:
    """The list of what destructors could not do, which Python would print."""
    said: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda failed: said.append(f"Exception ignored in {failed.object}"))
    monkeypatch.setattr(sys, "excepthook", lambda *failed: said.append(str(failed[1])))
    return said


@pytest.mark.parametrize("name", _WRITERS)
def test_every_library_that_writes(disk, printed, name):
    path = disk / name
    path.write_bytes(b"old")

    def write() -> None:
        with whole_file(path) as unfinished:
            _WRITERS[name](unfinished)

    with full(disk):
        there = sorted(os.listdir(disk))
        with pytest.raises(StorageError) as raised:
            write()
        reason = "No space left on device" if os.path.ismount(disk) else "File too large"
        assert str(raised.value).startswith(f"{path} cannot be written ({reason}): what was there before is as it was; ")
        assert str(disk) in str(raised.value).partition("; ")[2]
        assert str(raised.value).endswith(", and repeat the command")
        assert raised.value.strerror == reason
        assert path.read_bytes() == b"old"
        assert sorted(os.listdir(disk)) == there
        del raised
        gc.collect()
        assert printed == []


def test_a_directory(disk):
    with full(disk):
        there = os.listdir(disk)
        with (
            pytest.raises(StorageError, match="model cannot be written .*: no part of it is left there"),
            whole_directory(disk / "model") as unfinished,
        ):
            tf.saved_model.save(_network(), str(unfinished))
        assert os.listdir(disk) == there


def test_by_tensorflow_alone(disk):
    path = f"{disk}/shard"
    with full(disk):
        there = os.listdir(disk)
        with pytest.raises(StorageError, match="shard cannot be written"), whole_remote_file(path) as unfinished:
            _tensorflow(pathlib.Path(unfinished))
        assert os.listdir(disk) == there


class TestScratchArray:
    def test_is_of_zeros_and_has_no_name(self, tmp_path):
        values = scratch_array(tmp_path, (100, 7))
        assert os.listdir(tmp_path) == []
        assert (values.shape, values.dtype) == ((100, 7), np.float32)
        assert not values.any()
        values[50] = np.arange(7)
        np.testing.assert_array_equal(values[49:52].sum(axis=0), np.arange(7))

    def test_its_room_is_reserved(self, disk):
        """A write to a map of a file that the disk has no room for would end the process by SIGBUS."""
        with full(disk), pytest.raises(StorageError):
            scratch_array(disk, (100_000, 3))
        if os.path.ismount(disk):
            values = scratch_array(disk, (100, 1000))
            free = os.statvfs(disk)
            assert free.f_bavail * free.f_frsize < 700_000
            values[:] = 1.0


class TestErrors:
    def test_of_a_command(self):
        """Each error has the status of its kind, and one that is none of ours has no words for the user."""
        full_disk = OSError(errno.ENOSPC, "No space left on device", "/disk/x")
        op = tf.errors.ResourceExhaustedError(None, None, "/disk/x; No space left on device [Op:SaveV2]")
        for error in (full_disk, op, RuntimeError("h5 (errno = 28, error message = 'No space left on device')")):
            told = told_to_user(error)
            assert isinstance(told, StorageError)
            assert "No space left on device" in str(told)
        assert "/disk/x" in str(told_to_user(full_disk))
        assert isinstance(told_to_user(PermissionError(errno.EACCES, "Permission denied", "/data/x")), SourceError)
        memory = told_to_user(tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor"))
        assert exit_status(memory) == 2
        for mistake in (ValueError("shapes"), KeyError("x"), TypeError("x"), tf.errors.InvalidArgumentError(None, None, "shapes")):
            assert told_to_user(mistake) is None

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            (pathlib.Path.unlink, "No such file or directory"),
            (lambda path: path.write_bytes(path.read_bytes()[:100]), "a damaged or cut png"),
        ],
    )
    def test_an_image_that_is_gone(self, tmp_path, rng, change, reason):
        """TensorFlow tells of a graph, and of a damaged file not even the name."""
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(tmp_path / f"{i} a;b.png")
        views = inference_batches(load_source(f"folder:{tmp_path}", SourceOptions()).train, size=(8, 8), batch_size=4)
        change(tmp_path / "7 a;b.png")
        with pytest.raises(tf.errors.OpError) as raised:
            list(views)
        told = told_to_user(raised.value)
        assert isinstance(told, SourceError)
        assert str(told) == f"{tmp_path}/7 a;b.png cannot be read any more ({reason}): restore it, and repeat the command"

    def test_that_quotes_the_words_of_the_system(self):
        assert storage_errno(SourceError("x.png: Input/output error")) is None
        assert storage_errno(ValueError("No space left on device")) is None

    def test_another_error_of_the_unfinished_file(self, tmp_path):
        with pytest.raises(StorageError, match=r"no/a cannot be written \(No such file or directory\)"):
            write_whole(tmp_path / "no" / "a", "x")

        def copy() -> None:
            with whole_file(tmp_path / "a") as unfinished:
                unfinished.write_bytes((tmp_path / "missing").read_bytes())

        with pytest.raises(FileNotFoundError):
            copy()
