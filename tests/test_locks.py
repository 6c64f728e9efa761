"""Locks: of two that would write one file the second is refused by name, and what killed ones left is removed."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest
from fixtures import ROOT

from sela_tf.commands.outputs import only_writer
from sela_tf.files.atomic import write_whole
from sela_tf.files.locks import HeldError, sole_writer, take_lock
from sela_tf.settings.fields import ConfigError

_HOLD = """
import pathlib, sys
from sela_tf.files.atomic import unfinished_of
from sela_tf.files.locks import sole_writer
path = pathlib.Path(sys.argv[1])
with sole_writer(path):
    unfinished_of(path).write_text("half")
    print("held", flush=True)
    sys.stdin.read()
"""


def _holder(path: pathlib.Path) -> subprocess.Popen[str]:
    """A process that is writing `path`, until its input ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_refused_by_name(tmp_path):
    path = tmp_path / "labels.csv"
    with _holder(path) as process:
        try:
            with pytest.raises(ConfigError) as raised, only_writer("output", path):
                pass
            assert str(raised.value).startswith(f"{path} is being written by process {process.pid} on {os.uname().nodename}: -c")
            assert str(raised.value).endswith("wait for its end, or name another `output`")
            assert (tmp_path / ".unfinished-labels.csv").read_text() == "half"
            with only_writer("output", tmp_path / "others.csv"):
                write_whole(tmp_path / "others.csv", "whole")
        finally:
            assert process.stdin is not None
            process.stdin.close()
    assert process.returncode == 0
    with only_writer("output", path):
        pass
    assert os.listdir(tmp_path) == ["others.csv"]


def test_what_a_killed_process_left_is_removed(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("old")
    with _holder(path) as process:
        process.send_signal(signal.SIGKILL)
    assert sorted(os.listdir(tmp_path)) == [".lock-labels.csv", ".unfinished-labels.csv", "labels.csv"]
    (tmp_path / ".unfinished-labels.csv.left_out.csv").touch()
    (tmp_path / ".unfinished-other.csv").touch()
    with sole_writer(path, tmp_path / "labels.csv.left_out.csv"):
        assert sorted(os.listdir(tmp_path)) == [".lock-labels.csv", ".unfinished-other.csv", "labels.csv"]
    assert sorted(os.listdir(tmp_path)) == [".unfinished-other.csv", "labels.csv"]
    assert path.read_text() == "old"


def test_a_directory_has_its_lock_inside(tmp_path):
    with sole_writer(tmp_path):
        assert os.listdir(tmp_path) == [".lock-here"]
        with pytest.raises(HeldError, match=f"{tmp_path} is being written by process {os.getpid()} "), sole_writer(tmp_path):
            pass
        with sole_writer(tmp_path / "file"):
            assert sorted(os.listdir(tmp_path)) == [".lock-file", ".lock-here"]
    assert os.listdir(tmp_path) == []


def test_the_lock_of_a_removed_file_is_none(tmp_path, monkeypatch):
    """Between opening and locking its file, its holder may end, which removes the file, and another begin."""
    path, lock = tmp_path / "a", tmp_path / ".lock-a"
    opens = os.open
    others: list[int] = []

    def and_then_it_is_removed(*args: object, **options: object) -> int:
        descriptor = opens(*args, **options)
        if args[0] == lock and not others:
            others.append(descriptor)
            lock.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", and_then_it_is_removed)
    with sole_writer(path):
        assert others
        assert lock.exists()
        with pytest.raises(HeldError), sole_writer(path):
            pass
    assert os.listdir(tmp_path) == []


def test_the_lock_of_a_run_stays(tmp_path):
    os.close(take_lock(tmp_path / ".lock"))
    assert (tmp_path / ".lock").read_text().startswith(f"process {os.getpid()} on ")
    os.close(take_lock(tmp_path / ".lock"))
