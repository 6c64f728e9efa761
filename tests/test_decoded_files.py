"""Image files that are decoded once: the same pixels as when each is decoded whenever it is needed."""

from __future__ import annotations

import dataclasses
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sela_tf.data import decoded_files
from sela_tf.data.augment import Augmentation
from sela_tf.data.decoded_files import keep_decoded
from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches, training_batches
from sela_tf.data.pixel_rules import DEFAULT_RULES, reduced_sizes
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.data.splits import match_input
from sela_tf.data.stores import DecodedFiles, Files

SIZES = ((40, 30), (30, 41), (90, 31), (12, 12), (200, 64), (33, 77))
RULES = DEFAULT_RULES._replace(shorter_side=20)
EVERYTHING = 2**30


@pytest.fixture
def folder(tmp_path, rng) -> pathlib.Path:
    """Images of many sizes and kinds: colour, gray, transparent, 16 bits, one of them twice."""
    directory = tmp_path / "images"
    directory.mkdir()
    for number, (height, width) in enumerate(SIZES):
        pixels = rng.integers(0, 256, (height, width, 4), dtype=np.uint8)
        Image.fromarray(pixels).save(directory / f"{number}.png")
        Image.fromarray(pixels[..., :3]).save(directory / f"{number}.jpg", quality=80)
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 16).save(directory / "deep.png")
    (directory / "again.jpg").write_bytes((directory / "0.jpg").read_bytes())
    return directory


def loaded(folder: pathlib.Path) -> ImageSet:
    return dataclasses.replace(load_source(f"folder:{folder}", SourceOptions()).train, rules=RULES)


def decoded(images: ImageSet, **options) -> ImageSet:
    (kept,) = keep_decoded([images], **{"memory_limit": EVERYTHING, "tell": lambda line: None, **options})
    return kept


def all_views(images: ImageSet) -> list[np.ndarray]:
    shape = {"size": (16, 16), "batch_size": 5, "seed": 3}
    batches = training_batches(images, **shape, augmentation=Augmentation(), first_step=0, last_step=4)
    return [part.numpy() for batch in (*batches, *inference_batches(images, **shape)) for part in batch]


def count_decoded(monkeypatch) -> list[str]:
    """Notes the paths that are decoded from now on."""
    paths: list[str] = []
    real = decoded_files._pixels
    monkeypatch.setattr(decoded_files, "_pixels", lambda some, images: (paths.extend(some), real(some, images))[1])
    return paths


@pytest.mark.slow
def test_views_are_the_same_to_the_bit(folder, tmp_path):
    images = loaded(folder)
    kept = decoded(images, cache_dir=str(tmp_path / "cache"))
    assert isinstance(kept.store, DecodedFiles)
    assert kept.fingerprint() == images.fingerprint()
    again = decoded(images, cache_dir=str(tmp_path / "cache"))
    for other in (kept, again):
        for a, b in zip(all_views(images), all_views(other), strict=True):
            np.testing.assert_array_equal(a, b)
    some = np.array([7, 2, 2, 9, 0, 5])
    for a, b in zip(all_views(images.take(some)), all_views(again.take(some)), strict=True):
        np.testing.assert_array_equal(a, b)
    gray = [match_input(each, (16, 16, 1)) for each in (images, kept)]
    for a, b in zip(*map(all_views, gray), strict=True):
        np.testing.assert_array_equal(a, b)


def test_pixels_are_those_of_the_decoder(folder, tmp_path):
    images = loaded(folder)
    for kept in (decoded(images, cache_dir=str(tmp_path / "cache")), decoded(images, cache_dir=str(tmp_path / "cache"))):
        for place, path in enumerate(images.store.paths):
            expected = decoded_files.decode_image(tf.io.read_file(path), 3, RULES)
            np.testing.assert_array_equal(kept.store.image(tf.constant(place)), expected)
    assert kept.fingerprint() == images.fingerprint()
    np.testing.assert_array_equal(kept.store.checksums(), images.store.checksums())


def test_only_new_images_are_decoded(folder, tmp_path, monkeypatch):
    paths, options = count_decoded(monkeypatch), {"cache_dir": str(tmp_path / "cache")}
    decoded(loaded(folder), **options)
    # Of two files with the same bytes one is decoded.
    assert len(paths) == len(list(folder.iterdir())) - 1
    paths.clear()
    decoded(loaded(folder), **options)
    assert paths == []
    Image.new("RGB", (50, 60), "red").save(folder / "3.jpg")
    kept = decoded(loaded(folder), **options)
    assert [pathlib.Path(path).name for path in paths] == ["3.jpg"]
    place = kept.names.index("3.jpg")
    assert tuple(kept.store.image(tf.constant(place)).shape) == (24, 20, 3)


def test_the_oldest_caches_of_a_folder_go(folder, tmp_path):
    images, cache = loaded(folder).take(np.arange(2)), tmp_path / "cache"
    made = []
    for bound in range(8, 14):
        decoded(dataclasses.replace(images, rules=RULES._replace(shorter_side=bound)), cache_dir=str(cache))
        (new,) = {*cache.iterdir()} - {*made}
        os.utime(new, (bound, bound))
        made.append(new)
    assert {*cache.iterdir()} == {*made[-4:]}


@pytest.mark.slow
def test_a_damaged_cache_is_made_anew(folder, tmp_path):
    images, cache = loaded(folder), tmp_path / "cache"
    kept = decoded(images, cache_dir=str(cache))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], *(_flipped(whole, at) for at in range(50, len(whole), len(whole) // 4))):
        file.write_bytes(damaged)
        np.testing.assert_array_equal(decoded(images, cache_dir=str(cache)).store.pixels, kept.store.pixels)
        assert file.read_bytes() in (whole, damaged)


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :]


def test_what_does_not_fit_is_decoded_when_needed(folder):
    lines: list[str] = []
    images = loaded(folder)
    needed = int(reduced_sizes(images.store.sizes, 20).prod(axis=1).sum() * 3)
    assert isinstance(decoded(images, memory_limit=needed).store, DecodedFiles)
    assert decoded(images, memory_limit=needed - 1, tell=lines.append).store is images.store
    assert len(lines) == 1
    assert "`memory_limit=" in lines[0]
    unlisted = dataclasses.replace(images, store=Files(images.store.paths))
    assert decoded(unlisted) is unlisted


def test_a_cache_that_cannot_be_written_is_told(folder, tmp_path):
    (tmp_path / "file").write_text("")
    lines: list[str] = []
    kept = decoded(loaded(folder), cache_dir=str(tmp_path / "file"), tell=lines.append)
    assert isinstance(kept.store, DecodedFiles)
    assert [line.startswith(f"`cache_dir={tmp_path}/file` cannot be written") for line in lines] == [True]


def test_files_that_change_meanwhile(folder):
    images = loaded(folder)
    Image.new("RGB", (50, 60)).save(folder / "2.jpg")
    with pytest.raises(SourceError, match=r"2\.jpg has changed since it was checked"):
        decoded(images)
    (folder / "2.jpg").unlink()
    with pytest.raises(SourceError, match=r"2\.jpg cannot be read any more \(No such file"):
        decoded(images)


@pytest.mark.parametrize("bound", [0, 1, 7, 20, 64])
def test_reduced_sizes_are_those_of_the_decoder(bound, rng):
    sizes = rng.integers(1, 130, (60, 2))
    reduced = reduced_sizes(sizes, bound)
    for (height, width), expected in zip(sizes, reduced, strict=True):
        data = tf.io.encode_png(np.zeros((height, width, 1), np.uint8))
        found = decoded_files.decode_image(data, 1, DEFAULT_RULES._replace(shorter_side=bound))
        assert tuple(found.shape) == (*expected, 1)
