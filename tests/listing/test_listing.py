"""The listing of a folder: files are decoded once."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import os
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from served import encoded, picture

from sela_tf.cli import flags
from sela_tf.commands import probe as prober
from sela_tf.commands.label_images import images_to_label
from sela_tf.data import listing
from sela_tf.data.folder_contents import walk
from sela_tf.data.listing import inspect_file, inspect_header, list_folder, read_listing, write_listing
from sela_tf.data.pixel_rules import DEFAULT_RULES
from sela_tf.data.sources import SourceOptions, load_source, outline_source
from sela_tf.settings.commands import LabelConfig, ProbeConfig
from sela_tf.settings.training import SelaConfig

LONG_AGO = 10**18


def described(splits) -> tuple:
    train = splits.train
    return train.names, train.channels, train.image_size, train.class_names, train.fingerprint(), splits.report


def _bytes_read() -> int:
    """The bytes that this process has read from files so far."""
    with open("/proc/self/io") as file:
        return int(file.readline().removeprefix("rchar: "))


class TestListing:
    def test_a_second_start_decodes_nothing_and_finds_the_same(self, folder, tmp_path, decoded):
        options = {"max_rejected": 1.0, "cache_dir": str(tmp_path / "cache")}
        told: list[str] = []
        first = load_source(f"folder:{folder}", SourceOptions(**options), tell=told.append)
        assert len(decoded) == 13
        assert told == [f"reading and checking 16 of the 16 files of {str(folder)!r}"]
        second = load_source(f"folder:{folder}", SourceOptions(**options), tell=told.append)
        assert len(decoded) == 13
        assert len(told) == 1
        assert described(first) == described(second)
        assert described(second) == described(load_source(f"folder:{folder}", SourceOptions(max_rejected=1.0)))

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
        assert {file.name: file for file in after} == {
            name: inspect_file(str(folder), name) for name in walk(str(folder), name="f")
        }

    @pytest.mark.skipif(not os.path.exists("/proc/self/io"), reason="only Linux counts the bytes that a process reads")
    def test_unchanged_files_are_not_read_and_a_touched_one_keeps_its_digest(self, tmp_path, rng):
        paths = [tmp_path / "images" / f"{i}.bmp" for i in range(4)]
        paths[0].parent.mkdir()
        for path in paths:
            path.write_bytes(encoded(picture(rng, "RGB", (500, 400)), "BMP"))
            os.utime(path, ns=(LONG_AGO, LONG_AGO))
        size, names, root = paths[0].stat().st_size, [path.name for path in paths], str(tmp_path / "images")

        def read() -> tuple[int, list[str]]:
            """The number of whole files that were read, and the digests."""
            before, files, after = _bytes_read(), list_folder(root, names, cache_dir=str(tmp_path / "cache")), _bytes_read()
            return (after - before) // size, [file.sha256 for file in files]

        digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]
        assert read() == (4, digests)
        assert read() == (0, digests)
        os.utime(paths[2])
        assert read() == (1, digests)
        assert read() == (0, digests)
        edited = bytearray(paths[1].read_bytes())
        edited[-1] ^= 1
        paths[1].write_bytes(edited)
        assert read() == (1, [digests[0], hashlib.sha256(edited).hexdigest(), *digests[2:]])

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
        assert files["b/other.tiff"].is_foreign
        assert files["notes.txt"].problem == ""
        assert files["a/00.png"].info[:4] == ("png", 16, 20, 3)

    def test_the_digest_of_pixels_is_of_the_pixels(self, tmp_path, rng):
        image = picture(rng, "RGB", (5, 6))
        for name, kind in (("a.png", "PNG"), ("b.bmp", "BMP")):
            (tmp_path / name).write_bytes(encoded(image, kind))
        (tmp_path / "c.png").write_bytes(encoded(picture(rng, "RGB", (5, 6)), "PNG"))
        Image.fromarray(np.asarray(image).reshape(6, 5, 3)).save(tmp_path / "d.png")
        a, b, c, d = (inspect_file(str(tmp_path), name) for name in ("a.png", "b.bmp", "c.png", "d.png"))
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
        for module, name, value in ((tf, "__version__", "2.0.0"), (listing, "FORMAT", 1)):
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
            r"`cache_dir=\S+/file/cache` cannot be written \(Not a directory\): the files .* again next time", told[1]
        )
        assert len(told) == 2

    def test_writers_at_once_leave_a_whole_listing(self, tmp_path, folder):
        names, root, cache_dir = walk(str(folder), name="f"), str(folder), str(tmp_path / "cache")
        both = [[inspect_file(root, name) for name in part] for part in (names, names[:3])]
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
        load_source(config.dataset, SourceOptions(cache_dir=config.cache_dir))
        decoded.clear()
        settings = LabelConfig(workdir="x", output="y.csv", dataset=config.dataset)
        labelled, _ = images_to_label(settings, config, DEFAULT_RULES)
        assert decoded == []
        assert len(labelled[0][1]) == 12
        images_to_label(dataclasses.replace(settings, cache_dir=str(tmp_path / "own")), config, DEFAULT_RULES)
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
            return inspect_file(root, name)

        monkeypatch.setattr(listing, "inspect_file", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list_folder(str(folder), names, **options)
        assert list(read_listing(str(folder), **options)) == names[:5]


class TestHeaders:
    def test_headers_tell_what_decoding_finds(self, folder, decoded, rng):
        """The size of a jpeg is found after a long description, too."""
        remark = Image.Exif()
        remark[0x010E] = "a long description" * 1000
        picture(rng, "RGB", (11, 12)).save(folder / "a" / "exif.jpg", exif=remark)
        names = walk(str(folder), name="f")
        headers = [inspect_header(str(folder), name) for name in names]
        assert decoded == []
        for header, file in zip(headers, [inspect_file(str(folder), name) for name in names], strict=True):
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
        assert outline.splits.report == splits.report[:-1]
