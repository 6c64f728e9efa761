"""Files and directories are written whole or not at all."""

from __future__ import annotations

import os
import pathlib

import pytest
import tensorflow as tf

from sela_tf.files.atomic import unfinished_beside, whole_directory, whole_file, write_whole
from sela_tf.files.remote import whole_remote_file


def test_what_killed_processes_left_is_removed_after_a_day(tmp_path):
    old, new, whole = (tmp_path / name for name in ("a.parquet.unfinished-1", "b.parquet.unfinished-2", "a.parquet"))
    for path in (old, new, whole):
        path.write_text("x")
    for path in (old, whole):
        os.utime(path, (1e9, 1e9))
    name = unfinished_beside(tmp_path / "c.parquet")
    assert sorted(tmp_path.iterdir()) == sorted([new, whole])
    assert name.parent == tmp_path
    assert name.name.startswith("c.parquet.unfinished-")
    assert name != unfinished_beside(tmp_path / "c.parquet")


class TestWholeFile:
    def test_takes_its_name_at_the_end(self, tmp_path):
        path = tmp_path / "a.json"
        path.write_text("old")
        with whole_file(path) as unfinished:
            assert unfinished == tmp_path / ".unfinished-a.json"
            unfinished.write_text("new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert os.listdir(tmp_path) == ["a.json"]

    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_an_exception_leaves_the_old_one(self, tmp_path, error):
        write_whole(tmp_path / "a", "old")

        def fail() -> None:
            with whole_file(tmp_path / "a") as unfinished:
                unfinished.write_text("half")
                raise error

        with pytest.raises(error):
            fail()
        assert (tmp_path / "a").read_text() == "old"
        assert os.listdir(tmp_path) == ["a"]

    def test_an_exception_before_anything_is_written_is_not_hidden(self, tmp_path):
        with pytest.raises(ValueError, match="early"), whole_file(tmp_path / "no" / "a"):
            raise ValueError("early")

    def test_its_content_reaches_the_disk_before_its_name_and_the_name_after_it(self, tmp_path, monkeypatch):
        calls = _calls_to_the_disk(monkeypatch)
        write_whole(tmp_path / "a", "new")
        assert calls == ["fsync .unfinished-a", "replace a", f"fsync {tmp_path.name}"]


class TestWholeDirectory:
    def test_takes_its_name_at_the_end(self, tmp_path):
        with whole_directory(tmp_path / "a", unfinished=tmp_path / ".a-1") as unfinished:
            (unfinished / "file").write_text("x")
            assert os.listdir(tmp_path) == [".a-1"]
        assert os.listdir(tmp_path) == ["a"]
        assert (tmp_path / "a" / "file").read_text() == "x"

    def test_an_exception_removes_it(self, tmp_path):
        def fail() -> None:
            with whole_directory(tmp_path / "a") as unfinished:
                (unfinished / "file").write_text("x")
                raise ValueError("late")

        with pytest.raises(ValueError, match="late"):
            fail()
        assert os.listdir(tmp_path) == []

    def test_all_its_files_reach_the_disk_before_its_name(self, tmp_path, monkeypatch):
        calls = _calls_to_the_disk(monkeypatch)
        with whole_directory(tmp_path / "a") as unfinished:
            (unfinished / "b").mkdir()
            for name in ("file", "b/other"):
                (unfinished / name).write_text("x")
        assert sorted(calls[:4]) == ["fsync .unfinished-a", "fsync b", "fsync file", "fsync other"]
        assert calls[4:] == ["rename a", f"fsync {tmp_path.name}"]


def _calls_to_the_disk(monkeypatch) -> list[str]:
    """The list that all later fsyncs and renames are noted in, each with the last part of its path."""
    calls: list[str] = []
    fsync = os.fsync

    def noted_fsync(descriptor: int) -> None:
        calls.append(f"fsync {os.path.basename(os.readlink(f'/proc/self/fd/{descriptor}'))}")
        fsync(descriptor)

    def noted(name: str) -> None:
        call = getattr(os, name)

        def rename(old: pathlib.Path, new: pathlib.Path) -> None:
            calls.append(f"{name} {new.name}")
            call(old, new)

        monkeypatch.setattr(os, name, rename)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    noted("replace")
    noted("rename")
    return calls


class TestWholeRemoteFile:
    def test_on_another_file_system(self):
        path = "ram://files/a.json"
        for text in ("old", "new"):
            with whole_remote_file(path) as unfinished:
                assert unfinished == "ram://files/.unfinished-a.json"
                with tf.io.gfile.GFile(unfinished, "w") as file:
                    file.write(text)

        def fail() -> None:
            with whole_remote_file(path) as unfinished:
                with tf.io.gfile.GFile(unfinished, "w") as file:
                    file.write("half")
                raise ValueError("late")

        with pytest.raises(ValueError, match="late"):
            fail()
        with tf.io.gfile.GFile(path) as file:
            assert file.read() == "new"
        assert tf.io.gfile.listdir("ram://files") == ["a.json"]
