"""Commands on a finished run that are killed at any point at which they write, order or remove files: what lies there is old or new, and whole."""

from __future__ import annotations

import shutil

import pytest
from crash_points import crash_points, digests
from fixtures import run_here

_COMMANDS = {
    "label": ["--output={run}/labels.csv"],
    "export": ["--export_dir={run}/served", "--nowarm_up"],
    "probe": ["--stages=embedding", "--knn=10"],
    "report": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("command", list(_COMMANDS))
def test_files_are_old_or_new_and_the_next_command_removes_what_was_left(finished, tmp_path, command):
    run = tmp_path / "run"
    shutil.copytree(finished[0], run, ignore=shutil.ignore_patterns("checkpoints", "tensorboard"))
    for name in ("labels.csv", "probes.json"):
        (run / name).write_text("old")
    before = digests(run)
    arguments = [f"--workdir={run}", *(each.format(run=run) for each in _COMMANDS[command])]
    with crash_points(run, tmp_path / "copies") as killed:
        (done,) = run_here([arguments], f"sela_tf.{command}")
    assert done.returncode == 0, done.stderr
    after = digests(run)
    assert len(killed) > 2
    for copy in killed:
        for name, digest in digests(copy).items():
            is_left = any(part.startswith((".unfinished-", ".lock")) for part in name.split("/"))
            assert is_left or digest in (before.get(name), after.get(name)), (copy, name)
    # half of what it writes is there
    shutil.rmtree(run)
    shutil.copytree(killed[len(killed) // 2], run)
    (again,) = run_here([arguments], f"sela_tf.{command}")
    assert again.returncode == 0, again.stderr
    found = digests(run)
    assert not any(part.startswith((".unfinished-", ".lock-")) for name in found for part in name.split("/"))
    if command in ("label", "probe"):
        assert {**found, ".lock": ""} == {**after, ".lock": ""}
