"""Trainings on a disk that fills: one line, nothing lost, and the same command ends as one that had room."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from crash_points import differences, final_digests
from disks import full
from fixtures import is_one_line, run_here

from sela_tf.files import saves
from sela_tf.runs.workdir import Workdir
from sela_tf.training.progress import Progress

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    """A run of a second on vectors, on a directory to be added."""
    directory, rng = tmp_path_factory.mktemp("vectors"), np.random.default_rng(0)
    np.savez(directory / "vectors.npz", features=rng.normal(size=(200, 8)).astype(np.float32))
    return [
        f"--dataset=features:{directory}/vectors.npz", f"--cache_dir={directory}/cache", "--eval_fraction=0.2", "--backbone=mlp", "--width=8",
        "--hidden_units=0", "--num_heads=2", "--num_clusters=4", "--batch_size=32", "--epochs=3", "--learning_rate=0.05",
        "--num_relabellings=5", "--monitor_epochs=1", "--log_every_steps=1", "--evaluate=none", "--noreport",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(command, tmp_path_factory) -> dict[str, str]:
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    (done,) = run_here([[*command, f"--workdir={workdir}"]])
    assert done.returncode == 0, done.stderr
    return final_digests(workdir)


@pytest.mark.parametrize("moment", ["start", "row", "save", "end"])
def test_that_fills(command, unbroken, disk, monkeypatch, moment):
    workdir, filled = disk / "run", contextlib.ExitStack()

    def fill_at(owner: object, name: str, when: int) -> None:
        act, calls = getattr(owner, name), []

        def filling(*arguments, **options):
            calls.append(name)
            if len(calls) == when:
                filled.enter_context(full(disk))
            return act(*arguments, **options)

        patch.setattr(owner, name, filling)

    with monkeypatch.context() as patch, filled:
        owner, name, when = {
            "start": (Workdir, "start", 1), "row": (Progress, "on_train_batch_end", 6), "save": (saves, "save", 3),
            "end": (saves, "prune", 5),
        }[moment]  # fmt: skip
        fill_at(owner, name, when)
        (stopped,) = run_here([[*command, f"--workdir={workdir}"]])
    is_one_line(stopped, "cannot be written (", status=6)
    assert "make room in" in stopped.stderr or "ulimit" in stopped.stderr
    assert not list(disk.rglob(".unfinished*"))
    (done,) = run_here([[*command, f"--workdir={workdir}"]])
    assert done.returncode == 0, done.stderr
    assert differences(final_digests(workdir), unbroken) == set()
