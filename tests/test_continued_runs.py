"""Runs that are stopped, continued, or started in a thread."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from fixtures import ROOT, SMALL, is_one_line, rows, run_door, run_doors, run_here, run_python

from sela_tf.cli.signals import signals_noted


def test_signals_are_left_to_the_main_thread():
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with signals_noted() as stop:
                assert stop.signal_number is None
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert failed == []


@pytest.mark.slow
def test_a_run_in_a_thread(tmp_path):
    settings = (
        "dataset='digits', backbone='resnet8', width=8, num_heads=2, num_clusters=16, batch_size=64, epochs=1, learning_rate=0.1, "
        "num_relabellings=2, report=False"
    )
    work = f"found.append(sela_tf.run(sela_tf.SelaConfig({settings}), {str(tmp_path / 'run')!r}))"
    done = run_python(
        "import threading, sela_tf; found = []\n"
        f"thread = threading.Thread(target=lambda: {work}); thread.start(); thread.join(); print(found[0]['trained']['knn'])"
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.splitlines()[-1]) > 0.5


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_continues(finished, tmp_path, number):
    """Stopped within the first epoch, continued: the labels and losses of the run that was left alone."""
    command = [sys.executable, "-m", "sela_tf.train", *SMALL, f"--workdir={tmp_path / 'run'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not (metrics.exists() and '"train", "step": 3' in metrics.read_text()):
        time.sleep(0.01)
    process.send_signal(number)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 128 + number, err
    stopped = re.search(r"stopped and saved at step (\d+)", out)
    assert stopped, out
    assert 3 <= int(stopped[1]) < 42
    assert f"--workdir={tmp_path / 'run'}" in out.splitlines()[-1]
    continued = run_door(*SMALL, f"--workdir={tmp_path / 'run'}")
    assert continued.returncode == 0, continued.stderr
    assert f"continues at step {stopped[1]}" in continued.stdout
    interrupted, whole = rows(tmp_path / "run"), rows(finished[0])
    assert interrupted == whole


@pytest.mark.slow
def test_more_epochs_continue_a_finished_run(finished, tmp_path):
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", finished[0], workdir], check=True)
    longer = run_door(*SMALL, f"--workdir={workdir}", "--epochs=3")
    assert longer.returncode == 0, longer.stderr
    assert "continues at step 42" in longer.stdout
    assert max(row["step"] for row in rows(workdir)) == 63
    assert json.loads((workdir / "results.json").read_text())["config"]["epochs"] == 3


def test_a_run_without_its_checkpoints_is_kept_and_not_trained_anew(finished, tmp_path):
    workdir = tmp_path / "run"
    subprocess.run(["cp", "-r", finished[0], workdir], check=True)
    subprocess.run(["rm", "-r", workdir / "checkpoints"], check=True)
    before = (workdir / "metrics.jsonl").read_bytes(), (workdir / "results.json").read_bytes()
    same, longer = run_here([[*SMALL, f"--workdir={workdir}"], [*SMALL, f"--workdir={workdir}", "--epochs=3"]])
    assert same.returncode == 0
    assert "finished" in same.stdout
    is_one_line(longer, "no checkpoint of it is there and whole")
    assert ((workdir / "metrics.jsonl").read_bytes(), (workdir / "results.json").read_bytes()) == before


@pytest.mark.slow
def test_changed_images_are_not_continued(tmp_path, rng):
    for i in range(2):
        np.savez(tmp_path / f"{i}.npz", images=rng.integers(0, 256, (200, 8, 8), dtype=np.uint8))
    os.replace(tmp_path / "0.npz", tmp_path / "x.npz")
    flags = (*SMALL, f"--dataset=npz:{tmp_path / 'x.npz'}", "--epochs=1", f"--workdir={tmp_path / 'run'}")
    assert run_door(*flags).returncode == 0
    os.replace(tmp_path / "1.npz", tmp_path / "x.npz")
    is_one_line(run_door(*flags, "--epochs=2"), "not the same any more", status=3)


@pytest.mark.slow
def test_a_rotated_run_continues(tmp_path):
    """The state of the head that is not exported is part of a checkpoint."""
    way = [*SMALL, "--rotation", "--num_relabellings=1"]
    whole, half, rest = run_doors(
        [
            [*way, f"--workdir={tmp_path}/whole"],
            [*way, "--epochs=1", f"--workdir={tmp_path}/parts"],
            [*way, f"--workdir={tmp_path}/parts"],
        ]
    )
    assert whole.returncode == half.returncode == rest.returncode == 0, rest.stderr
    # the first epoch of one and of two have the same learning rate, and both relabel once, before the first step
    names = ("step", "loss", "heads_loss", "rotation_loss")
    one, two = (
        [[row[name] for name in names] for row in rows(tmp_path / run) if row["kind"] == "train"] for run in ("whole", "parts")
    )
    assert len(one) == 42
    assert one == two
