"""Files of arrays that claim what they do not hold: each is refused by its first bytes, before anything is unpacked."""

from __future__ import annotations

import gzip
import io
import pathlib
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from sela_tf.data.errors import SourceError
from sela_tf.data.label_files import read_run_shape
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.files.archives import names_in_npz, read_npz, write_npz

HUGE = 10**12
LITTLE = 2**24
"""Bytes that a refusal may take."""


def npy(shape: object, values: bytes = b"", descr: object = "|u1") -> bytes:
    """An npy file with any header."""
    text = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape!r}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + values


def npz(path: pathlib.Path, members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def refused(dataset: str, message: str, *, memory_limit: int = 2**30) -> None:
    """The data set is refused, with little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(SourceError, match=message) as error:
            load_source(dataset, SourceOptions(memory_limit=memory_limit))
        assert tracemalloc.get_traced_memory()[1] < LITTLE
    finally:
        tracemalloc.stop()
    assert error.value.exit_status == 3


@pytest.mark.parametrize(
    ("shape", "descr", "message"),
    [
        ((HUGE, 8, 8), "|u1", "claims to be uint8"),
        ((-5, 8, 8), "|u1", "which cannot be"),
        ((2**62, 2**62, 0), "|u1", "which cannot be"),
        ((HUGE,), "<U0", "claims to be <U0"),
        ((2, 8, 8), "|u1", r"claims to be uint8 \[2, 8, 8\], and has 64 bytes"),
        ((1,), [("a", "|u1", (2**30,))], "which cannot be"),
        ((1, 8, 8), "|O", "Python objects, which are never unpickled"),
        ((1, "a", 8), "|u1", "not an npz or npy file"),
        ("[" * 5000, "|u1", "not an npz or npy file"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_headers_of_arrays(tmp_path, shape, descr, message, alone):
    data = npy(shape, bytes(64), descr)
    path = tmp_path / "x.npz"
    if alone:
        path.write_bytes(data)
    else:
        npz(path, {"images.npy": data, "features.npy": data})
    for kind in ("npz", "features"):
        refused(f"{kind}:{path}", message)


def test_a_zip_bomb_is_not_unpacked(tmp_path):
    """An array of 64 MB in a file of 64 KB."""
    path = npz(tmp_path / "x.npz", {"images.npy": npy((2**26,)) + bytes(2**26)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    refused(f"npz:{path}", r"take 0\.1 GiB, `memory_limit=0\.03125` GiB: raise it", memory_limit=2**25)


def test_the_directory_of_a_zip_file_is_not_believed(tmp_path):
    path = npz(tmp_path / "x.npz", {"images.npy": npy((1, 8, 8), bytes(64))})
    data = path.read_bytes()
    at = data.index(b"PK\x01\x02")
    # the sizes of the member, packed and unpacked
    path.write_bytes(data[: at + 20] + struct.pack("<II", 2**31, 2**31) + data[at + 28 :])
    refused(f"npz:{path}", "claim more bytes than the file has", memory_limit=2**40)
    path.write_bytes(data[: at + 24] + struct.pack("<I", 2**31) + data[at + 28 :])
    refused(f"npz:{path}", "claims 2147483648 bytes", memory_limit=2**40)


@pytest.mark.parametrize("names", [("../images.npy",), ("/images.npy",), ("a\\..\\..\\x.npy",), ("x.npy", "x")])
def test_names_that_lead_elsewhere(tmp_path, names):
    path = npz(tmp_path / "x.npz", dict.fromkeys(names, npy((1, 8, 8), bytes(64))))
    with pytest.raises(ValueError, match="twice, or is a path to another place"):
        names_in_npz(path)


def test_what_is_whole_is_read(tmp_path, rng):
    arrays = {
        "model/0000": rng.normal(size=(3, 4)).astype(np.float32), "text": np.array(["a", "\N{CAT FACE}"]), "none": np.zeros((0, 3)),
        "single": np.array(2.5), "turned": np.asfortranarray(rng.integers(0, 9, (4, 5))), "is": np.array([True, False]),
    }  # fmt: skip
    for save in (write_npz, lambda file, values: np.savez_compressed(file, **values)):
        save(tmp_path / "x.npz", arrays)
        for file in (tmp_path / "x.npz", io.BytesIO((tmp_path / "x.npz").read_bytes())):
            found = read_npz(file)
            assert list(found) == list(arrays)
            for name, values in arrays.items():
                assert found[name].dtype == values.dtype
                assert np.array_equal(found[name], values)


class TestIdx:
    def write(self, path: pathlib.Path, shape: tuple[int, ...], values: bytes, *, zipped: bool) -> None:
        data = struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + values
        path.joinpath(f"train-images-idx3-ubyte{'.gz' if zipped else ''}").write_bytes(gzip.compress(data) if zipped else data)

    @pytest.mark.parametrize("zipped", [True, False])
    @pytest.mark.parametrize(
        ("shape", "size", "message"),
        [
            ((2**32 - 1, 2**16, 2**16), 64, "more than 17179869180.0 GiB, `memory_limit=1` GiB"),
            ((2**20, 28, 28), 64, "it claims"),
            ((1, 8, 8), 63, "does not hold"),
            ((1, 8, 8), 65, "does not hold"),
        ],
    )
    def test_claims(self, tmp_path, shape, size, message, zipped):
        self.write(tmp_path, shape, bytes(size), zipped=zipped)
        refused(f"idx:{tmp_path}", message)

    def test_a_gzip_bomb_is_not_unpacked(self, tmp_path):
        """64 bytes by the header, 64 MB in the file."""
        with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb", compresslevel=1) as file:
            file.write(struct.pack(">HBB3I", 0, 8, 3, 1, 8, 8))
            for _ in range(64):
                file.write(bytes(2**20))
        refused(f"idx:{tmp_path}", "does not hold")

    @pytest.mark.parametrize("zipped", [True, False])
    def test_what_is_whole_is_read(self, tmp_path, rng, zipped):
        pixels = rng.integers(0, 256, (40, 200, 200), np.uint8)  # more than is unpacked at once
        self.write(tmp_path, pixels.shape, pixels.tobytes(), zipped=zipped)
        assert np.array_equal(load_source(f"idx:{tmp_path}").train.images[..., 0], pixels)


@pytest.mark.parametrize("number", [10**12, 2**18])
def test_numbers_of_classes(tmp_path, number):
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 8, 8), np.uint8), classes=np.array([0, number]))
    refused(f"npz:{tmp_path / 'x.npz'}", "number the classes from 0 to at most 262143")


@pytest.mark.parametrize(
    "changed",
    [
        {"labels": np.array(3)}, {"labels": np.zeros(5, int)}, {"labels": np.full((2, 5), 8)}, {"labels": np.full((2, 5), -1)},
        {"labels": np.zeros((2, 5))}, {"labels": np.zeros((3, 5), int)}, {"potentials": np.array(1.0)}, {"potentials": np.zeros((2, 8), int)},
        {"potentials": np.zeros((2, 0))}, {"names": np.arange(5)}, {"names": np.array(["a"])}, {"labels": np.array("x")},
    ],
)  # fmt: skip
def test_labels_of_another_run(tmp_path, changed):
    arrays = {"labels": np.zeros((2, 5), int), "potentials": np.zeros((2, 8)), "data_fingerprint": np.array("x")}
    write_npz(tmp_path / "labels.npz", arrays)
    assert read_run_shape(tmp_path / "labels.npz") == (2, 8)
    write_npz(tmp_path / "labels.npz", {**arrays, **changed})
    with pytest.raises(SourceError, match="is not the labels.npz of a run"):
        read_run_shape(tmp_path / "labels.npz")
