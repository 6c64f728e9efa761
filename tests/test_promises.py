"""Stopped at any moment and called again, a run ends with the files of one that was left alone; what is finished stays usable."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
from crash_points import crash_points, differences, final_digests
from fixtures import ROOT, SMALL, is_one_line, run_here

import sela_tf
from sela_tf.cli.flags import departures, to_flagfile
from sela_tf.files import saves
from sela_tf.models.finite import DivergedError
from sela_tf.runs.finished import read_finished
from sela_tf.runs.flagfile import read_config, settings_there
from sela_tf.runs.labels import read_labels
from sela_tf.runs.results import has_results, read_results
from sela_tf.runs.workdir import Workdir
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.loop import TrainingInterrupted
from sela_tf.training.progress import ShownLabelling
from sela_tf.training.resuming import newest_checkpoint


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> SelaConfig:
    """The settings of a run of a second, of some 150 vectors to train on: 12 steps, some of its relabellings within an epoch."""
    directory, rng = tmp_path_factory.mktemp("vectors"), np.random.default_rng(0)
    classes = rng.integers(0, 4, 200)
    features = rng.normal(size=(4, 8))[classes] + 0.3 * rng.normal(size=(200, 8))
    np.savez(directory / "vectors.npz", features=features.astype(np.float32), classes=classes)
    return SelaConfig(
        dataset=f"features:{directory}/vectors.npz", cache_dir=str(directory / "cache"), eval_fraction=0.2, backbone="mlp", width=8,
        hidden_units=0, num_heads=2, num_clusters=4, batch_size=32, epochs=3, learning_rate=0.05, num_relabellings=5, monitor_epochs=1,
        log_every_steps=3, report=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(vectors, tmp_path_factory) -> dict[str, str]:
    workdir = tmp_path_factory.mktemp("unbroken") / "run"
    sela_tf.run(vectors, workdir)
    return final_digests(workdir)


def changed(config: SelaConfig, **settings) -> SelaConfig:
    return dataclasses.replace(config, **settings)


def assert_same(workdir: pathlib.Path, unbroken: dict[str, str]) -> None:
    """All files are those of the unbroken run, but for what is said of the machine, and for the checkpoint before the newest."""
    assert differences(final_digests(workdir), unbroken) == set()


@pytest.mark.slow
def test_killed_at_every_point_at_which_files_change(vectors, tmp_path):
    """A training, its saves and its end, killed before and after each write, fsync, rename and removal, and completed by the same call."""
    config = changed(vectors, epochs=2, evaluate="none")
    with crash_points(tmp_path / "run", tmp_path / "copies") as killed:
        sela_tf.run(config, tmp_path / "run")
    unbroken = final_digests(tmp_path / "run")
    assert len(killed) > 20
    for workdir in killed:
        sela_tf.run(config, workdir)
        assert_same(workdir, unbroken)


@pytest.mark.slow
def test_a_longer_training_that_is_killed_leaves_the_earlier_network_or_the_later_one(vectors, tmp_path):
    workdir, networks = tmp_path / "run", {}

    def network(workdir: pathlib.Path) -> tuple[int, bytes, bytes]:
        finished = read_finished(workdir)
        labels = read_labels(workdir, (2, 4))
        assert read_config(workdir).epochs == finished.step // 4
        assert not has_results(workdir) or read_results(workdir)["network"] == finished.identity()
        weights = sela_tf.load_run(workdir).get_weights()
        return finished.step, b"".join(weight.tobytes() for weight in weights), labels["labels"].tobytes()

    sela_tf.run(vectors, workdir)
    networks[12] = network(workdir)
    with crash_points(workdir, tmp_path / "copies") as killed:
        sela_tf.run(changed(vectors, epochs=5), workdir)
    networks[20] = network(workdir)
    steps = []
    for copy in killed:
        found = network(copy)
        assert found == networks[found[0]]
        # The verdict is that of the network, from the first moment to the last but those in which it is taken.
        assert found[0] == 20 or has_results(copy)
        steps.append(found[0])
    assert {*steps} == {12, 20}
    assert steps == sorted(steps)


_PROGRAM = """
import os, signal, sys
import sela_tf.training.run as run
from sela_tf.files import saves
from sela_tf.self_labelling import callback
from sela_tf.training import experiment
moment = sys.argv.pop()
def killed_at(module, name, when):
    calls, act = [], getattr(module, name)
    def wrapped(*arguments, **options):
        calls.append(arguments)
        if len(calls) == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return act(*arguments, **options)
    setattr(module, name, wrapped)
if moment == "start": killed_at(run.saves, "save", 1)
if moment == "step": killed_at(run.Progress, "on_train_batch_end", 8)
if moment == "pass": killed_at(callback, "compute_labels", 2)
if moment == "save": killed_at(saves, "digest_of_file", 1)
if moment == "end": killed_at(run, "judge_run", 1)
from sela_tf import train
sys.exit(train.main(sys.argv))
"""


def start(moment: str, *arguments: str) -> subprocess.CompletedProcess:
    """The command of training, which is killed at a moment of the program."""
    command = [sys.executable, "-c", _PROGRAM, *arguments, moment]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_killed_five_times(finished, tmp_path):
    """Real processes, killed where it hurts: before the first save, within a step, a label pass, a save, and the evaluation."""
    # Each process of the tests has a cache of its own.
    cache = f"--cache_dir={read_config(finished[0]).cache_dir}"
    arguments = [*SMALL, "--report", cache, f"--workdir={tmp_path / 'run'}"]
    for moment in ("start", "step", "pass", "save", "end"):
        killed = start(moment, *arguments)
        assert killed.returncode == -signal.SIGKILL, (moment, killed.stderr)
    completed = start("never", *arguments)
    assert completed.returncode == 0, completed.stderr
    assert_same(tmp_path / "run", final_digests(finished[0]))


@pytest.mark.slow
def test_killed_on_two_devices(tmp_path):
    """Each has moving statistics of its own, as it normalises by its share of the batch."""
    two = [*SMALL, "--logical_cpus=2", "--evaluate=none", "--checkpoint_minutes=1e-9", "--log_every_steps=5"]
    for run, moments in (("whole", ["never"]), ("parts", ["step", "never"])):
        for moment in moments:
            done = start(moment, *two, f"--workdir={tmp_path / run}")
            assert done.returncode == (0 if moment == "never" else -signal.SIGKILL), done.stderr
    ours, theirs = (json.loads((tmp_path / run / "results.json").read_text()) for run in ("whole", "parts"))
    assert ours == theirs
    assert_same(tmp_path / "parts", final_digests(tmp_path / "whole"))


@pytest.mark.slow
class TestASignal:
    @pytest.mark.parametrize("when", [1, 3])
    def test_ends_a_label_pass_which_is_taken_again(self, vectors, unbroken, tmp_path, monkeypatch, when):
        calls, compute = [], ShownLabelling.compute

        def stopped(self, step, **options):
            outcome = compute(self, step, **options)
            calls.append(step)
            if len(calls) == when:
                # As a pass in training mode has them until its end.
                assert self.model.non_trainable_variables
                for variable in self.model.non_trainable_variables:
                    variable.assign(variable + 1)
                os.kill(os.getpid(), signal.SIGTERM)
                pytest.fail("the pass went on")
            return outcome

        with monkeypatch.context() as patch:
            patch.setattr(ShownLabelling, "compute", stopped)
            with pytest.raises(TrainingInterrupted, match=rf"SIGTERM: stopped and saved at step {0 if when == 1 else '.+'}"):
                sela_tf.run(vectors, tmp_path / "run")
        sela_tf.run(vectors, tmp_path / "run")
        assert_same(tmp_path / "run", unbroken)

    def test_with_the_last_save_ends_the_run_before_its_last_pass(self, vectors, unbroken, tmp_path, monkeypatch):
        from sela_tf.training import run as run_module

        save = run_module.saves.save

        def stopped(directory, step, *arguments, **options):
            save(directory, step, *arguments, **options)
            if step == 12:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(run_module.saves, "save", stopped)
            with pytest.raises(TrainingInterrupted, match="SIGTERM: stopped and saved at step 12"):
                sela_tf.run(vectors, tmp_path / "run")
        sela_tf.run(vectors, tmp_path / "run")
        assert_same(tmp_path / "run", unbroken)

    @pytest.mark.parametrize("rotation", [False, True])
    def test_between_two_rows_changes_no_row(self, vectors, unbroken, tmp_path, monkeypatch, rotation):
        """Keras' metrics have gathered steps then; with rotations there are several, which Keras makes late."""
        from sela_tf.training.progress import Progress

        config = vectors
        if rotation:
            config = SelaConfig(
                dataset="digits", eval_fraction=0.25, backbone="resnet8", width=4, num_heads=2, num_clusters=8, batch_size=64, epochs=1,
                num_relabellings=2, rotation=True, log_every_steps=8, logical_cpus=0, report=False, evaluate="none",
            )  # fmt: skip
            sela_tf.run(config, tmp_path / "whole")
            unbroken = final_digests(tmp_path / "whole")
        after = Progress.on_train_batch_end

        def stopped(self, batch, logs=None):
            after(self, batch, logs)
            if self.clock.step == 5:
                os.kill(os.getpid(), signal.SIGTERM)

        with monkeypatch.context() as patch:
            patch.setattr(Progress, "on_train_batch_end", stopped)
            with pytest.raises(TrainingInterrupted, match="step 5"):
                sela_tf.run(config, tmp_path / "run")
        sela_tf.run(config, tmp_path / "run")
        assert_same(tmp_path / "run", unbroken)

    def test_usr1_saves_and_training_goes_on(self, vectors, unbroken, tmp_path, monkeypatch):
        from sela_tf.training import run as run_module
        from sela_tf.training.progress import Progress

        after, save, steps = Progress.on_train_batch_end, run_module.saves.save, []

        def asked(self, batch, logs=None):
            after(self, batch, logs)
            if self.clock.step == 6:
                os.kill(os.getpid(), signal.SIGUSR1)

        def noted(directory, step, *arguments, **options):
            steps.append(step)
            save(directory, step, *arguments, **options)

        monkeypatch.setattr(Progress, "on_train_batch_end", asked)
        monkeypatch.setattr(run_module.saves, "save", noted)
        sela_tf.run(vectors, tmp_path / "run")
        assert steps == [0, 4, 6, 8, 12]
        assert_same(tmp_path / "run", unbroken)


@pytest.mark.slow
def test_saves_within_an_epoch_change_nothing(vectors, unbroken, tmp_path, monkeypatch):
    """`checkpoint_minutes`: killed within an epoch, a run goes on from the last save of it."""
    from sela_tf.training.progress import Progress

    often, after = changed(vectors, checkpoint_minutes=1e-9), Progress.on_train_batch_end

    class Killed(BaseException):
        pass

    def kill(self, batch, logs=None):
        after(self, batch, logs)
        if self.clock.step == 7:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_train_batch_end", kill)
        with pytest.raises(Killed):
            sela_tf.run(often, tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000005", "step-00000006"]
    sela_tf.run(vectors, tmp_path / "run")
    assert_same(tmp_path / "run", unbroken)


class TestDivergence:
    @pytest.mark.slow
    def test_what_is_not_finite_is_not_saved_and_the_way_out_works(self, vectors, tmp_path):
        # One step an epoch: the loss that is logged is that of the weights before the step, which are finite.
        wild = [*sela_tf_flags(vectors), f"--workdir={tmp_path / 'run'}", "--batch_size=150", "--log_every_steps=1"]
        (diverged,) = run_here([[*wild, "--learning_rate=1e38", "--weight_decay=1e3", "--num_relabellings=1"]])
        is_one_line(diverged, "arrays of the training are not finite, such as model/", status=4)
        assert diverged.stderr.count("by --restart and --learning_rate=1e+37") == 1
        saved, passed_over = saves.load_newest(tmp_path / "run" / "checkpoints")
        assert (saved.step, passed_over) == (0, [])
        assert all(np.isfinite(values).all() for name, values in saved.arrays.items() if name.startswith(("model/", "optimizer/")))
        assert not (tmp_path / "run" / "network.json").exists()
        (lower,) = run_here([[f"--workdir={tmp_path / 'run'}", "--restart", "--learning_rate=0.05", "--weight_decay=1e-5"]])
        assert lower.returncode == 0, lower.stderr
        assert read_finished(tmp_path / "run").step == 3

    def test_an_older_checkpoint_that_is_not_finite_is_passed_over(self, vectors, tmp_path, capsys):
        for step, value in ((4, 1.0), (8, np.nan)):
            saves.save(tmp_path / "run" / "checkpoints", step, {"model/0000": np.full(3, value)}, {}, keep=2)
        directory = Workdir(tmp_path / "run", vars(vectors), restart=True)
        directory.restart = False
        assert newest_checkpoint(directory).step == 4
        assert "step 8 has numbers that are not finite (model/0000)" in capsys.readouterr().out

    def test_the_error_is_ours(self):
        assert DivergedError.exit_status == 4


def sela_tf_flags(config: SelaConfig) -> list[str]:
    return departures(config)


class TestSettings:
    @pytest.mark.slow
    @pytest.mark.parametrize("damage", ["gone", "empty", "cut"])
    def test_a_damaged_flagfile_is_written_again(self, vectors, unbroken, tmp_path, monkeypatch, damage):
        from sela_tf.training.progress import Progress

        workdir = tmp_path / "run"
        with monkeypatch.context() as patch:
            patch.setattr(Progress, "on_train_end", lambda self, logs=None: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                sela_tf.run(vectors, workdir)
        flags = workdir / "flags.cfg"
        text = flags.read_text()
        flags.write_text("" if damage == "empty" else text[: len(text) // 2])
        if damage == "gone":
            flags.unlink()
        assert (
            to_flagfile(settings_there(workdir)[0])
            == to_flagfile(read_config(workdir))
            == text.split("\n", 1)[1].removesuffix("# whole\n")
        )
        (done,) = run_here([[f"--workdir={workdir}"]])
        assert done.returncode == 0, done.stderr
        assert flags.read_text() == text
        assert_same(workdir, unbroken)

    def test_without_any_other_file_the_damage_is_named(self, vectors, tmp_path):
        directory = Workdir(tmp_path / "run", vars(vectors))
        directory.start(0, directory.config)
        directory.close()
        flags = tmp_path / "run" / "flags.cfg"
        flags.write_text(flags.read_text()[:100])
        with pytest.raises(
            ConfigError, match=r"flags.cfg is cut: name another directory, or begin anew in this one with `restart`"
        ):
            Workdir(tmp_path / "run", vars(vectors))
        assert Workdir(tmp_path / "run", vars(vectors), restart=True).config == vectors.absolute()

    def test_killed_as_the_first_file_is_written(self, vectors, tmp_path):
        (tmp_path / "run").mkdir()
        for name in (".lock", ".unfinished-flags.cfg"):
            (tmp_path / "run" / name).write_text("--dat")
        directory = Workdir(tmp_path / "run", vars(vectors))
        directory.start(0, directory.config)
        directory.close()
        assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [".lock", "flags.cfg", "tensorboard"]


class TestRestart:
    @pytest.mark.slow
    def test_begins_anew_and_keeps_the_finished_network_until_there_is_another(self, vectors, tmp_path, monkeypatch):
        workdir = tmp_path / "run"
        sela_tf.run(vectors, workdir)
        before = read_finished(workdir)
        shutil.rmtree(workdir / "checkpoints")
        rows = (workdir / "metrics.jsonl").read_bytes()
        with pytest.raises(ConfigError, match="the run has begun, and no checkpoint of it is there and whole.*`restart`"):
            sela_tf.run(changed(vectors, epochs=4), workdir)
        assert (workdir / "metrics.jsonl").read_bytes() == rows
        with monkeypatch.context() as patch:
            patch.setattr(Workdir, "finish", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                sela_tf.run(changed(vectors, seed=1), workdir, restart=True)
        assert read_finished(workdir) == before._replace(superseded=True)
        assert has_results(workdir)
        assert read_config(workdir).seed == 0
        sela_tf.run(changed(vectors, seed=1), workdir)
        assert read_config(workdir).seed == 1
        assert read_results(workdir)["network"] == read_finished(workdir).identity() != before.identity()

    def test_leaves_other_peoples_files(self, vectors, tmp_path):
        (tmp_path / "thesis.tex").write_text("all")
        with pytest.raises(ConfigError, match=r"holds other files \(thesis.tex\)"):
            Workdir(tmp_path, vars(vectors), restart=True)


@pytest.mark.slow
def test_results_name_the_network_that_they_judge(vectors, tmp_path):
    sela_tf.run(vectors, tmp_path / "run")
    results = tmp_path / "run" / "results.json"
    found = json.loads(results.read_text())
    assert found["network"] == read_finished(tmp_path / "run").identity()
    results.write_text(json.dumps({**found, "network": {**found["network"], "weights_sha256": "of another"}}))
    assert not has_results(tmp_path / "run")
    sela_tf.run(vectors, tmp_path / "run")
    assert json.loads(results.read_text()) == found
