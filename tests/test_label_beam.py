"""Labels of records by Apache Beam: the file is that of a single process, balanced or not."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import signal
import subprocess
import sys

import pytest
from fixtures import ROOT, is_one_line, run_here
from ingested import IN_PROCESS, MARKS, PROCESSES, ingested
from processes import Tree

from sela_tf.tasks.lost import WorkerLostError

pytestmark = MARKS
DOOR = "sela_tf.label"
HERE, BESIDE = (f"--beam_pipeline_args={','.join(options[1:])}" for options in (IN_PROCESS, PROCESSES))


@pytest.fixture(scope="module")
def records(tmp_path_factory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("records") / "digits"
    ingested("digits", directory, eval_fraction=0.25)
    return directory


@pytest.fixture
def command(finished, records, tmp_path):
    """The arguments of a labelling into the file `name`."""

    def arguments(name: str, *more: str) -> list[str]:
        return [
            f"--workdir={finished[0]}",
            f"--dataset=records:{records}",
            f"--output={tmp_path}/{name}",
            "--batch_size=100",
            *more,
        ]

    return arguments


@pytest.fixture
def small_shares(monkeypatch):
    monkeypatch.setattr("sela_tf.commands.label_beam._BATCHES", 3)


@pytest.mark.parametrize(
    "kind", [("--projector={}",), pytest.param(("--balanced", "--neighbours=0", "--nopictures"), marks=pytest.mark.slow)]
)
def test_the_file_is_that_of_a_single_process(command, tmp_path, small_shares, kind):
    """Shares of several batches each, of two splits."""
    alone, by_beam = ([each.format(tmp_path / name) for each in kind] for name in ("p1", "p2"))
    one, two = run_here([command("1.parquet", *alone), command("2.parquet", *by_beam, "--beam_runner=FnApiRunner", HERE)], DOOR)
    assert one.returncode == two.returncode == 0, two.stderr
    assert "labelling 1797 images by Apache Beam, in this process" in two.stdout
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    for path in (tmp_path / "p1").rglob("*") if (tmp_path / "p1").exists() else ():
        assert path.read_bytes() == (tmp_path / "p2" / path.relative_to(tmp_path / "p1")).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} <= {"1.parquet", "2.parquet", "p1", "p2"}


def test_what_cannot_be(command, finished, tmp_path):
    folder, alone, nonsense = run_here(
        [
            [f"--workdir={finished[0]}", f"--output={tmp_path}/a.csv", "--beam_runner=FnApiRunner"],
            command("a.csv", "--beam_pipeline_args=--x=y"),
            command("a.csv", "--beam_runner=Nonsense"),
        ],
        DOOR,
    )
    is_one_line(folder, "--beam_runner=FnApiRunner labels records", door=DOOR)
    is_one_line(alone, "--beam_pipeline_args=--x=y needs a --beam_runner", door=DOOR)
    is_one_line(nonsense, "--beam_pipeline_args=--runner=Nonsense: ", door=DOOR)
    assert list(tmp_path.iterdir()) == []


def test_without_beam(command, tmp_path, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "apache_beam" else find_spec(name))
    (done,) = run_here([command("a.csv", "--beam_runner=FnApiRunner")], DOOR)
    is_one_line(done, "--beam_runner=FnApiRunner needs Apache Beam: pip install 'sela-tf[beam]'", door=DOOR)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_worker_processes_and_one_that_is_killed(command, tmp_path):
    (one,) = run_here([command("1.parquet")], DOOR)
    assert one.returncode == 0, one.stderr
    by_beam = command("2.parquet", "--beam_runner=FnApiRunner", BESIDE)
    with Tree(DOOR, *by_beam, output=tmp_path / "said") as tree:
        os.kill(tree.wait_for(lambda line: "sdk_worker_main" in line and not line.startswith("/bin/sh")), signal.SIGKILL)
        assert tree.ends() == WorkerLostError.exit_status, tree.said()
    assert "a worker of Apache Beam was ended by SIGKILL" in tree.said()
    assert {path.name for path in tmp_path.iterdir()} == {"1.parquet", "said"}
    again = subprocess.run([sys.executable, "-m", DOOR, *by_beam], cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
