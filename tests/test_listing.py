"""The listing of a folder: files are decoded once; and what is refused before any is."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from served import encoded, picture

from sela_tf.cli import flags
from sela_tf.commands import label as labeller
from sela_tf.commands import probe as prober
from sela_tf.data import listing
from sela_tf.data.augment import Augmentation
from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet
from sela_tf.data.label_files import read_known_labels, read_run_labels
from sela_tf.data.listing import list_folder, look_at, look_at_header, read_listing, walk, write_listing
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.record_writer import Record, shard_name, write_manifest, write_shard
from sela_tf.data.sources import load_source, outline_source
from sela_tf.data.splits import hold_out
from sela_tf.data.stores import Files
from sela_tf.settings.commands import LabelConfig, ProbeConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training import run as trainer
from sela_tf.training.images import load_training_data

LONG_AGO = 10**18


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
    (root / "b" / "new.webp").write_bytes(encoded(picture(rng, "RGB", (9, 9)), "WEBP"))
    (root / "notes.txt").write_text("no image")
    return root


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """Grows with each file that is decoded, and with each graph that would decode."""
    calls: list[str] = []
    for name in ("decode_image", "decode_jpeg"):
        real = getattr(tf.io, name)
        monkeypatch.setattr(
            tf.io, name, lambda *args, real=real, name=name, **options: calls.append(name) or real(*args, **options)
        )
    return calls


def described(splits) -> tuple:
    train = splits.train
    return train.names, train.channels, train.image_size, train.class_names, train.fingerprint(), splits.report


class TestListing:
    def test_a_second_start_decodes_nothing_and_finds_the_same(self, folder, tmp_path, decoded):
        options = {"skip_bad_images": True, "cache_dir": str(tmp_path / "cache")}
        told: list[str] = []
        first = load_source(f"folder:{folder}", **options, tell=told.append)
        assert len(decoded) == 13
        assert told == [f"reading and checking 16 of the 16 files of {str(folder)!r}"]
        second = load_source(f"folder:{folder}", **options, tell=told.append)
        assert len(decoded) == 13
        assert len(told) == 1
        assert described(first) == described(second)
        assert described(second) == described(load_source(f"folder:{folder}", skip_bad_images=True))

    @pytest.mark.parametrize("change", ["size", "time", "new", "removed"])
    def test_only_what_has_changed_is_looked_at_again(self, folder, tmp_path, decoded, rng, change):
        file, cache_dir = folder / "a" / "00.png", str(tmp_path / "cache")
        os.utime(file, ns=(LONG_AGO, LONG_AGO))
        before = list_folder(str(folder), walk(str(folder), name="f"), cache_dir=cache_dir)
        decoded.clear()
        if change == "size":
            file.write_bytes(encoded(picture(rng, "RGB", (8, 8)), "PNG"))
            os.utime(file, ns=(LONG_AGO, LONG_AGO))
        elif change == "time":
            os.utime(file, ns=(LONG_AGO + 1, LONG_AGO + 1))
        elif change == "new":
            (folder / "a" / "new.png").write_bytes(file.read_bytes())
        else:
            file.unlink()
        told: list[str] = []
        for _ in range(2):
            after = list_folder(str(folder), walk(str(folder), name="f"), cache_dir=cache_dir, tell=told.append)
        assert len(decoded) == len(told) == (0 if change == "removed" else 1)
        assert all("1 of the 1" in line and line.endswith("new or changed") for line in told)
        assert len(after) == len(before) + {"new": 1, "removed": -1}.get(change, 0)
        assert {file.name: file for file in after} == {name: look_at(str(folder), name) for name in walk(str(folder), name="f")}

    def test_what_is_listed(self, folder, tmp_path):
        names = walk(str(folder), name="f")
        list_folder(str(folder), names, cache_dir=str(tmp_path))
        files = read_listing(f"{folder}/", cache_dir=str(tmp_path))
        assert list(files) == names
        for name, file in files.items():
            path = folder / name
            assert file.path == str(path)
            assert (file.size, file.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
            assert file.sha256 == ("" if name in ("notes.txt", "b/empty.png") else hashlib.sha256(path.read_bytes()).hexdigest())
        assert files["a/cut.jpg"].problem == "a damaged or cut jpeg"
        assert files["b/empty.png"].problem == "an empty file"
        assert files["b/new.webp"].is_foreign
        assert files["notes.txt"].problem == ""
        assert files["a/00.png"].info[:4] == ("png", 16, 20, 3)

    def test_the_digest_of_pixels_is_of_the_pixels(self, tmp_path, rng):
        image = picture(rng, "RGB", (5, 6))
        for name, kind in (("a.png", "PNG"), ("b.bmp", "BMP")):
            (tmp_path / name).write_bytes(encoded(image, kind))
        (tmp_path / "c.png").write_bytes(encoded(picture(rng, "RGB", (5, 6)), "PNG"))
        Image.fromarray(np.asarray(image).reshape(6, 5, 3)).save(tmp_path / "d.png")
        a, b, c, d = (look_at(str(tmp_path), name) for name in ("a.png", "b.bmp", "c.png", "d.png"))
        assert a.info.pixels_sha256 == b.info.pixels_sha256
        assert a.sha256 != b.sha256
        assert len({each.info.pixels_sha256 for each in (a, c, d)}) == 3

    def test_a_listing_that_cannot_be_used_is_made_anew(self, folder, tmp_path, monkeypatch):
        names, options = walk(str(folder), name="f"), {"cache_dir": str(tmp_path / "cache")}
        files = list_folder(str(folder), names, **options)
        (path,) = (tmp_path / "cache").iterdir()
        whole = path.read_bytes()
        for place in range(4, len(whole) - 8, len(whole) // 40):
            broken = bytearray(whole)
            broken[place] ^= 0xFF
            path.write_bytes(broken)
            assert list(read_listing(str(folder), **options).values()) in ([], files), place
        for broken in (b"", b"text", whole[:-50], whole[100:]):
            path.write_bytes(broken)
            assert read_listing(str(folder), **options) == {}
            assert list_folder(str(folder), names, **options) == files
            assert len(read_listing(str(folder), **options)) == len(files)
        for module, name, value in ((tf, "__version__", "2.0.0"), (listing, "FORMAT", 2)):
            with monkeypatch.context() as other:
                other.setattr(module, name, value)
                assert read_listing(str(folder), **options) == {}
        assert len(read_listing(str(folder), **options)) == len(files)

    def test_a_cache_that_cannot_be_written_is_told_and_does_no_harm(self, folder, tmp_path):
        (tmp_path / "file").write_text("mine")
        told: list[str] = []
        files = list_folder(str(folder), walk(str(folder), name="f"), cache_dir=str(tmp_path / "file" / "cache"), tell=told.append)
        assert files == list_folder(str(folder), walk(str(folder), name="f"))
        assert re.fullmatch(
            r"--cache_dir=\S+/file/cache cannot be written \(Not a directory\): the files .* again next time", told[1]
        )
        assert len(told) == 2

    def test_writers_at_once_leave_a_whole_listing(self, tmp_path, folder):
        names, root, cache_dir = walk(str(folder), name="f"), str(folder), str(tmp_path / "cache")
        both = [[look_at(root, name) for name in part] for part in (names, names[:3])]
        write_listing(root, both[0], cache_dir=cache_dir)

        def work(number: int) -> bool:
            if number % 3:
                write_listing(root, both[number % 2], cache_dir=cache_dir)
            return list(read_listing(root, cache_dir=cache_dir).values()) in both

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(60)))
        assert len(list((tmp_path / "cache").iterdir())) == 1

    def test_labelling_and_probing_read_it_too(self, folder, tmp_path, decoded):
        (folder / "a" / "cut.jpg").unlink()
        (folder / "b" / "empty.png").unlink()
        config = SelaConfig(dataset=f"folder:{folder}", cache_dir=str(tmp_path / "run")).absolute()
        load_source(config.dataset, cache_dir=config.cache_dir)
        decoded.clear()
        settings = LabelConfig(workdir="x", output="y.csv", dataset=config.dataset)
        labelled = labeller._images(settings, config)
        assert decoded == []
        assert len(labelled[0][1]) == 12
        labeller._images(dataclasses.replace(settings, cache_dir=str(tmp_path / "own")), config)
        assert len(decoded) == 12
        assert len(list((tmp_path / "own").iterdir())) == 1
        (tmp_path / "flags.cfg").write_text(flags.to_flagfile(config))
        assert prober._config_of(ProbeConfig(workdir=("x",)), tmp_path).cache_dir == str(tmp_path / "run")
        own = ProbeConfig(workdir=("x",), cache_dir=str(tmp_path / "own"))
        assert prober._config_of(own, tmp_path).cache_dir == str(tmp_path / "own")

    def test_what_was_looked_at_before_a_signal_is_kept(self, folder, tmp_path, monkeypatch):
        names, options = walk(str(folder), name="f"), {"cache_dir": str(tmp_path / "cache")}

        def interrupted(root: str, name: str):
            if name == names[5]:
                raise KeyboardInterrupt
            return look_at(root, name)

        monkeypatch.setattr(listing, "look_at", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list_folder(str(folder), names, **options)
        assert list(read_listing(str(folder), **options)) == names[:5]


class TestHeaders:
    def test_headers_tell_what_decoding_finds(self, folder, decoded, rng):
        """Also of a jpeg whose size comes after a long description."""
        remark = Image.Exif()
        remark[0x010E] = "a long description" * 1000
        picture(rng, "RGB", (11, 12)).save(folder / "a" / "exif.jpg", exif=remark)
        names = walk(str(folder), name="f")
        headers = [look_at_header(str(folder), name) for name in names]
        assert decoded == []
        for header, file in zip(headers, [look_at(str(folder), name) for name in names], strict=True):
            if file.name == "a/cut.jpg":
                assert header.info[:3] == ("jpeg", 30, 30)
            else:
                assert (header.info and header.info[:3]) == (file.info and file.info[:3])
                assert header[3:7] == file[3:7]

    def test_an_outline_is_of_the_same_images(self, folder, decoded):
        (folder / "a" / "cut.jpg").unlink()
        (folder / "b" / "empty.png").unlink()
        outline = outline_source(f"folder:{folder}")
        assert decoded == []
        splits = load_source(f"folder:{folder}")
        for name in ("names", "class_names", "image_size"):
            assert getattr(outline.splits.train, name) == getattr(splits.train, name)
        assert outline.splits.report == splits.report


def _records(directory: pathlib.Path, rng) -> str:
    sizes = [(70, 90), (70, 90), (70, 90), (64, 64)]
    records = [Record(f"{i}.png", encoded(picture(rng, "RGB", sizes[i % 4]), "PNG"), *sizes[i % 4], 3) for i in range(16)]
    parts = {"train": records[:12], "eval": [records[12]._replace(name="e.png")]}
    shards = {split: [write_shard(str(directory), shard_name(split, 0, 1), part)] for split, part in parts.items()}
    write_manifest(str(directory), shards, {"channels": 3, "class_names": None})
    return f"records:{directory}"


class TestRefusedBeforeDecoding:
    """The settings are held to headers and counts, with the exact hold-out."""

    CASES = (
        ({"num_clusters": 13, "batch_size": 4}, "--num_clusters=13 exceeds the {} training images"),
        ({"batch_size": 13, "num_clusters": 4}, "--batch_size=13 exceeds the {} training images"),
        ({"rotation": True}, "--rotation turns images, which must be square, not {}"),
        ({"backbone": "alexnet"}, "images of {} are too small for alexnet, which takes 63 pixels"),
        ({"backbone": "mlp"}, "`backbone=mlp` takes vectors"),
    )

    @pytest.mark.parametrize(("settings", "message"), CASES)
    def test_of_folders(self, folder, decoded, settings, message):
        (folder / "a" / "cut.jpg").unlink()
        (folder / "b" / "empty.png").unlink()
        config = SelaConfig(dataset=f"folder:{folder}", eval_fraction=0.3, **{"num_clusters": 4, "batch_size": 4, **settings})
        known = "16 x 20" if "{}" in message and "training images" not in message else None
        with pytest.raises(ValueError, match=message.format(known or r"(\d+)")) as refused:
            load_training_data(config)
        assert decoded == []
        if known is None and "{}" in message:
            train, _ = hold_out(load_source(config.dataset).train, 0.3)
            assert re.search(r"the (\d+) training", str(refused.value))[1] == str(len(train))

    def test_of_many_sizes(self, folder, decoded, tmp_path, rng):
        config = SelaConfig(dataset=f"folder:{folder}", num_clusters=4, batch_size=4, cache_dir=str(tmp_path / "cache"))
        with pytest.raises(ConfigError, match="have many sizes"):
            load_training_data(config)
        assert decoded == []
        # the one of another size is damaged: without it there is one size
        config = dataclasses.replace(config, skip_bad_images=True)
        assert load_training_data(config).size == (16, 20)
        decoded.clear()
        with pytest.raises(ConfigError, match="--num_clusters=2000 exceeds"):
            load_training_data(dataclasses.replace(config, num_clusters=2000))
        assert decoded == []

    def test_of_records(self, tmp_path, decoded, rng):
        dataset = _records(tmp_path / "records", rng)
        for settings, message in (*self.CASES[:2], ({"image_size": 0}, "have many sizes"), ({"backbone": "alexnet"}, "62 x 62")):
            config = SelaConfig(dataset=dataset, **{"num_clusters": 4, "batch_size": 4, "image_size": 62, **settings})
            with pytest.raises(ValueError, match=message.format(12)):
                load_training_data(config)
        assert decoded == []

    def test_of_images_that_would_be_made(self, monkeypatch):
        monkeypatch.setattr(np.random, "default_rng", None)
        with pytest.raises(ConfigError, match=r"--num_clusters=60000 exceeds the 45\d{3} training"):
            load_training_data(SelaConfig(dataset="synthetic:50000", num_clusters=60_000))

    def test_the_images_to_evaluate_on_are_not_decoded_either(self, folder, decoded):
        config = SelaConfig(dataset="digits", eval_dataset=f"folder:{folder}", num_clusters=1798, batch_size=4)
        with pytest.raises(ConfigError, match="exceeds the 1797 training images"):
            load_training_data(config)
        assert decoded == []

    def test_damaged_images_are_still_told_as_ever(self, folder):
        (folder / "a" / "cut.jpg").write_bytes(encoded(picture(np.random.default_rng(1), "RGB", (16, 20)), "PNG")[:300])
        config = SelaConfig(dataset=f"folder:{folder}", num_clusters=4, batch_size=4)
        with pytest.raises(SourceError, match=r"2 of 15 images cannot be read: a/cut.jpg .*--skip_bad_images"):
            load_training_data(config)


@pytest.fixture
def url(folder) -> str:
    """The folder on a file system that the operating system does not know, without what is damaged."""
    root = f"ram://{folder.name}-{os.getpid()}"
    for name in ("a/cut.jpg", "b/empty.png"):
        (folder / name).unlink()
    for name in walk(str(folder), name="f"):
        tf.io.gfile.makedirs(os.path.dirname(f"{root}/{name}"))
        tf.io.gfile.copy(str(folder / name), f"{root}/{name}", overwrite=True)
    yield root
    tf.io.gfile.rmtree(root)


class TestUrl:
    """A folder on a URL is what it is on a disk."""

    def test_views_fingerprint_and_hold_out(self, url, folder, tmp_path):
        local, remote = (load_source(f"folder:{root}", cache_dir=str(tmp_path)).train for root in (folder, url))
        assert remote.fingerprint() == local.fingerprint()
        sets = [hold_out(images, 0.3) for images in (local, remote)]
        assert sets[0][1].names == sets[1][1].names
        crops = Augmentation(0.3, 0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
        views = [[*inference_batches(train, size=(12, 12), batch_size=5, augmentation=crops)] for train, _ in sets]
        for (image, index), (same, same_index) in zip(*views, strict=True):
            np.testing.assert_array_equal(image, same)
            np.testing.assert_array_equal(index, same_index)
        with tf.io.gfile.GFile(f"{url}/a/00.png", "ab") as file:
            file.write(b"more")
        assert remote.fingerprint() != local.fingerprint()

    def test_label_files(self, url, tmp_path):
        train, held_out = hold_out(load_source(f"folder:{url}").train, 0.3)
        (tmp_path / "known.csv").write_text(f"name,cluster\n{train.names[2]},1\n{held_out.names[0]},0\n")
        known = read_known_labels(tmp_path / "known.csv", train, 2, others=[held_out])
        assert known.labels.tolist() == [-1, -1, 1, *[-1] * (len(train) - 3)]
        assert known.num_left_out == 1
        labels = np.arange(2 * len(train)).reshape(2, -1) % 4
        np.savez(
            tmp_path / "labels.npz", labels=labels, potentials=np.zeros((2, 4)), data_fingerprint=np.array(train.fingerprint()),
            names=np.array(train.names),
        )  # fmt: skip
        np.testing.assert_array_equal(read_run_labels(tmp_path / "labels.npz", train, 2, 4), labels)

    def test_settings_are_held_to_it(self, url, decoded):
        config = SelaConfig(dataset=f"folder:{url}", num_clusters=4, batch_size=4, image_size=16, eval_fraction=0.3).absolute()
        assert config.dataset == f"folder:{url}"
        with pytest.raises(ConfigError, match="--num_clusters=2000 exceeds"):
            load_training_data(dataclasses.replace(config, num_clusters=2000))
        assert decoded == []
        data = load_training_data(config)
        assert data.size == (16, 16)
        assert len(data.train) + len(data.held_out) == 12

    @pytest.mark.slow
    def test_a_whole_run(self, url, tmp_path):
        config = SelaConfig(
            dataset=f"folder:{url}", backbone="resnet8", width=1, num_heads=1, num_clusters=2, batch_size=4, image_size=16,
            eval_fraction=0.3, epochs=2, num_relabellings=2, report=False,
        )  # fmt: skip
        results = trainer.run(config, tmp_path / "run")
        assert results["data"]["num_training_images"] + results["data"]["num_held_out_images"] == 12
        (tmp_path / "labels").mkdir()
        labeller.label_run(LabelConfig(workdir=str(tmp_path / "run"), output=str(tmp_path / "labels" / "labels.csv")))
        assert len((tmp_path / "labels" / "labels.csv").read_text().splitlines()) == 13


def test_files_without_names_have_no_fingerprint(tmp_path):
    """By their paths the same images elsewhere would be others."""
    with pytest.raises(ValueError, match="zip"):
        ImageSet(name="x", channels=3, store=Files((str(tmp_path),))).fingerprint()
