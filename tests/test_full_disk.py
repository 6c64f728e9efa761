"""Every command on a full disk, and one output that two commands would write: real runs, disks, processes and kills."""

from __future__ import annotations

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from disks import small_disk
from fixtures import ROOT, Door, is_one_line, run_modules
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("full_disk")]

_LABELS = ("labels.parquet", "labels.csv", "labels.npz", "balanced.parquet")


@pytest.fixture(scope="module")
def tried(finished, tmp_path_factory) -> tuple[pathlib.Path, dict[str, list[Door]], dict[str, set[str]]]:
    """Every command on a full disk and, once there is room, again: (the disk, what was said by command, what lay on the full disk)."""
    base = tmp_path_factory.mktemp("full")
    pictures = base / "pictures"
    pictures.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(pictures / f"{i}.tif")
    with small_disk(base / "disk", 40 * 1024) as disk:
        run = shutil.copytree(finished[0], disk / "run", ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
        for name in _LABELS[:3]:
            (disk / name).write_text("old")
        (run / "probes.json").write_text("old")
        (disk / "served").mkdir()
        (disk / "converted").mkdir()
        where = f"--workdir={run}"
        commands = {
            **{name: ["sela_tf.label", where, f"--output={disk / name}"] for name in _LABELS},
            "export": ["sela_tf.export", where, f"--export_dir={disk}/served", "--nowarm_up"],
            "probe": ["sela_tf.probe", where, "--stages=embedding", "--knn=10"],
            "report": ["sela_tf.report", where],
            "convert": ["sela_tf.convert", f"--input={pictures}", f"--output={disk}/converted"],
        }
        commands["balanced.parquet"].append("--balanced")
        before = _files(disk)
        full = run_modules([["disks", "fill", str(disk)], *commands.values(), ["disks", "list", str(disk)]], path=ROOT / "tests")
        room = run_modules([["disks", "empty", str(disk)], *commands.values()], path=ROOT / "tests")
        kept = tmp_path_factory.mktemp("kept")
        shutil.copytree(disk, kept, dirs_exist_ok=True)
    said = {name: [one, two] for name, one, two in zip(commands, full[1:-1], room[1:], strict=True)}
    return kept, said, {"before": before, "full": set(full[-1].stdout.splitlines())}


def _files(directory: pathlib.Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", [*_LABELS, "export", "probe", "report", "convert"])
def test_a_full_disk_is_one_line_and_a_status(tried, name):
    _, said, _ = tried
    full, room = said[name]
    module = name if name in ("export", "probe", "report", "convert") else "label"
    is_one_line(full, "disk", door=f"sela_tf.{module}", status=6)
    assert any(words in full.stderr for words in ("No space left on device", "File too large"))
    assert "repeat the command" in full.stderr
    assert room.returncode == 0, room.stderr


def test_nothing_is_left_and_nothing_lost(tried):
    kept, _, files = tried
    assert files["full"] - {"filler"} - files["before"] <= {"converted/.sela_tf_convert.json"}
    assert files["before"] <= files["full"]
    assert not [name for name in _files(kept) if ".unfinished-" in name or ".lock-" in name]
    assert (kept / "served" / "1" / "saved_model.pb").exists()
    assert len(list((kept / "converted").glob("*.png"))) == 3


def _labelling(workdir: pathlib.Path, output: pathlib.Path, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "sela_tf.label", f"--workdir={workdir}", f"--output={output}", *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_two_that_label_into_one_file(finished, tmp_path):
    """The first one is stopped while it holds the lock; the second is refused before it loads anything; a third writes beside them."""
    output = tmp_path / "labels.csv"
    lock = tmp_path / ".lock-labels.csv"
    first = _labelling(finished[0], output)
    # Who holds it is written when it is held.
    while not (lock.exists() and lock.stat().st_size):
        assert first.poll() is None, first.communicate()
        time.sleep(0.01)
    first.send_signal(signal.SIGSTOP)
    command = ["sela_tf.label", f"--workdir={finished[0]}"]
    try:
        second, other = run_modules([[*command, f"--output={output}"], [*command, f"--output={tmp_path}/others.csv"]])
    finally:
        first.send_signal(signal.SIGCONT)
        _, err = first.communicate(timeout=300)
    is_one_line(second, f"{output} is being written by process {first.pid} on {os.uname().nodename}: ", door="sela_tf.label")
    assert "reading" not in second.stdout
    assert other.returncode == 0, other.stderr
    assert first.returncode == 0, err
    assert sorted(os.listdir(tmp_path)) == ["labels.csv", "others.csv"]
    assert output.read_bytes() == (tmp_path / "others.csv").read_bytes()


def test_what_a_killed_labelling_leaves_is_removed_by_the_next(finished, tmp_path):
    """Its features lie in files without names; its lock and its unfinished file are removed, even by a command that is refused then."""
    output = tmp_path / "labels.parquet"
    output.write_text("old")
    process = _labelling(finished[0], output, "--balanced")
    while not (tmp_path / ".unfinished-labels.parquet").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.001)
    process.kill()
    process.communicate()
    left = {".lock-labels.parquet", ".unfinished-labels.parquet", "labels.parquet"}
    assert set(os.listdir(tmp_path)) in (left, {"labels.parquet", ".lock-labels.parquet"})
    is_whole = output.read_bytes()[:4] == b"PAR1"
    assert is_whole or output.read_text() == "old"
    command = ["sela_tf.label", f"--output={output}", "--balanced"]
    refused, done = run_modules([[*command, f"--workdir={tmp_path}"], [*command, f"--workdir={finished[0]}"]])
    is_one_line(refused, "holds no run", door="sela_tf.label")
    assert done.returncode == 0, done.stderr
    assert os.listdir(tmp_path) == ["labels.parquet"]
