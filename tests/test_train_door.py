"""The door of the trainer: version, help, and bad input in one clear line."""

from __future__ import annotations

import re

from fixtures import SMALL, is_one_line, run_door, run_here

import sela_tf


def test_version_and_help():
    version, usage = run_here([["--version"], ["--help"]])
    assert version.returncode == 0
    assert re.match(
        rf"sela_tf {sela_tf.__version__}, TensorFlow 2\.\d+\.\d+, Keras [23]\.\d+\.\d+, Python 3\.\d+\.\d+, devices .*CPU:0",
        version.stdout,
    )
    assert version.stderr == ""
    text = usage.stdout
    assert "--num_clusters" in text
    assert "--workdir" in text


def test_bad_input_is_one_clear_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    (tmp_path / "file").write_text("mine")
    (tmp_path / "bad.cfg").write_text("# a comment\n--num_cluster=3\n")
    cases = {
        ("--dataset=digitz",): "--dataset=digitz: unknown",
        (f"--dataset=folder:{tmp_path}/empty",): f"no jpeg, png, gif, bmp or webp image in '{tmp_path}/empty'",
        (f"--dataset=folder:{tmp_path}/corrupt",): "1 of 1 images cannot be read, --max_rejected=0: a.png (a damaged or cut png)",
        ("--num_clusters=2000",): "--num_clusters=2000 exceeds the 1344 training images",
        ("--num_clusters=1",): "--num_clusters must be at least 2. Received: --num_clusters=1",
        ("--batch_size=2000",): "--batch_size=2000 exceeds the 1344 training images",
        ("--backbone=vgg",): "--backbone must be one of resnet8, resnet20, resnet56, resnet18, ",
        (
            "--backbone=alexnet",
        ): "images of 8 x 8 are too small for alexnet, which takes 63 pixels or more on each side: give a larger",
        (f"--workdir={tmp_path}/file",): f"--workdir={tmp_path}/file is a file",
        ("--epocs=3",): "Unknown command line flag 'epocs'. Did you mean: epochs",
        (f"--flagfile={tmp_path}/bad.cfg",): "Unknown command line flag 'num_cluster'",
        (f"--flagfile={tmp_path}/none.cfg",): f"{tmp_path}/none.cfg",
        ("--learning_rate=1e30", "--epochs=4", f"--workdir={tmp_path}/diverged"): "Lower the learning rate",
    }
    for message, door in zip(
        cases.values(), run_here([[*SMALL, f"--workdir={tmp_path}/run", *args] for args in cases]), strict=True
    ):
        of_data = ("unknown", "no jpeg", "cannot be read")
        status = 4 if "learning rate" in message else 3 if any(words in message for words in of_data) else 2
        is_one_line(door, message, status=status)
    assert (tmp_path / "file").read_text() == "mine"
    assert not (tmp_path / "run").exists()


def test_a_missing_workdir_is_asked_for():
    process = run_door("--dataset=digits", "--num_clusters=10")
    assert process.returncode == 2
    assert "--workdir is missing" in process.stderr
