"""The files that are left when training is over: a network that describes itself, whatever becomes of the verdict; and runs of older versions."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys

import keras
import numpy as np
import pyarrow.parquet
import pytest
import tensorflow as tf
from fixtures import ROOT, SMALL, is_one_line, run_doors

import sela_tf
from sela_tf.data.sources import load_source
from sela_tf.runs.finished import read_finished, write_finished
from sela_tf.runs.flagfile import read_config
from sela_tf.runs.labels import read_labels
from sela_tf.runs.names import LABELS, LOCK, NETWORK, REPORT, RESULTS, WEIGHTS
from sela_tf.runs.network import describe_older_run, read_description
from sela_tf.runs.results import has_results
from sela_tf.runs.workdir import Workdir
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig

OLD_RUN = pathlib.Path(__file__).parent / "data" / "run_of_cf4b11e"


def copy_of(run: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(run, tmp_path / "copy"))


def outputs(workdir: pathlib.Path) -> np.ndarray:
    model = sela_tf.load_run(workdir)
    return model(np.random.default_rng(0).uniform(0, 255, (3, *model.input.shape[1:])).astype(np.float32)).numpy()


class TestNetwork:
    def test_it_needs_neither_verdict_nor_settings(self, finished, tmp_path):
        workdir = copy_of(finished[0], tmp_path)
        expected = outputs(workdir)
        for name in (RESULTS, "flags.cfg", LABELS):
            (workdir / name).unlink()
        np.testing.assert_array_equal(outputs(workdir), expected)
        described = json.loads((workdir / NETWORK).read_text())
        assert described["step"] == 42
        description = read_description(workdir)
        assert (description.backbone, description.image_shape, description.num_clusters) == ("resnet8", (8, 8, 1), 16)

    def test_files_that_do_not_belong_together_are_refused(self, finished, tmp_path):
        workdir = copy_of(finished[0], tmp_path)
        model = sela_tf.load_run(workdir)
        whole = read_labels(workdir, model.output.shape[1:])
        np.savez(workdir / LABELS, **{**whole, "step": np.array(7)})
        with pytest.raises(ConfigError, match=r"labels of step 7, and the network is of step 42.*repeat the run's command"):
            read_labels(workdir, model.output.shape[1:])
        np.savez(workdir / LABELS, **{**whole, "weights_sha256": np.array("of another seed")})
        with pytest.raises(ConfigError, match="labels of another network"):
            read_labels(workdir, model.output.shape[1:])
        model.layers[-1].bias.assign(tf.ones_like(model.layers[-1].bias))
        model.save_weights(workdir / WEIGHTS)
        with pytest.raises(ConfigError, match=f"not the weights that {NETWORK} was written with.*repeat the run's command"):
            sela_tf.load_run(workdir)

    @pytest.mark.parametrize(
        "content",
        [
            "{",
            "{}",
            '{"format": 2, "weights_sha256": "", "network": {}}',
            "[]",
            '{"format": 1, "weights_sha256": "", "network": null}',
        ],
    )
    def test_a_damaged_description_is_named(self, finished, tmp_path, content):
        workdir = copy_of(finished[0], tmp_path)
        (workdir / NETWORK).write_text(content)
        with pytest.raises(ConfigError, match=rf"{NETWORK} is damaged.*repeat the run's command"):
            sela_tf.load_run(workdir)


class TestOldRun:
    def test_its_network_outlives_its_verdict(self, tmp_path):
        """A continued run is without results.json until there is another, and its network is usable meanwhile."""
        workdir = copy_of(OLD_RUN, tmp_path)
        expected = outputs(workdir)
        describe_older_run(workdir)
        (workdir / RESULTS).unlink()
        np.testing.assert_array_equal(outputs(workdir), expected)
        read_labels(workdir, (2, 8))

    def test_its_labels_are_not_taken_for_a_later_networks(self, tmp_path):
        workdir = copy_of(OLD_RUN, tmp_path)
        describe_older_run(workdir)
        write_finished(workdir, read_finished(workdir)._replace(step=6))
        with pytest.raises(ConfigError, match="labels of step None, and the network is of step 6"):
            read_labels(workdir, (2, 8))


class TestWorkdir:
    config = SelaConfig(dataset="digits", num_clusters=16, epochs=400)

    def test_a_new_volume_is_empty(self, tmp_path):
        (tmp_path / "lost+found").mkdir()
        Workdir(tmp_path, vars(self.config))
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(ConfigError, match=r"holds other files \(thesis.tex\)"):
            Workdir(tmp_path, vars(self.config))

    def test_whoever_holds_it_is_named(self, tmp_path):
        """The lock is on a file opened for writing: on NFS an exclusive lock on any other fails."""
        first, second = Workdir(tmp_path / "run", vars(self.config)), Workdir(tmp_path / "run", vars(self.config))
        first.start(0, self.config)
        with open(tmp_path / "run" / LOCK) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert fcntl.fcntl(first._descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDWR
        with pytest.raises(ConfigError, match=rf"is in use by process {os.getpid()} on \S+: .+: stop that"):
            second.start(0, self.config)
        first.close()
        second.start(0, self.config)
        second.close()

    def test_whoever_comes_second_is_refused_before_anything_is_loaded(self, finished, tmp_path, monkeypatch):
        workdir = copy_of(finished[0], tmp_path)
        config = dataclasses.replace(read_config(workdir), epochs=3)
        monkeypatch.setattr("sela_tf.training.run.newest_checkpoint", None)
        first = Workdir(workdir, vars(config))
        first.lock()
        with pytest.raises(ConfigError, match="is in use by process"):
            sela_tf.run(config, workdir)
        first.close()

    def test_a_verdict_counts_if_it_is_the_one_asked_for(self, finished, tmp_path):
        def is_finished(**changes) -> bool:
            return Workdir(finished[0], vars(dataclasses.replace(read_config(finished[0]), **changes))).is_finished

        assert is_finished()
        assert is_finished(report=False)
        # a verdict is more than was asked for
        assert is_finished(evaluate="none")
        assert not is_finished(evaluate="full")
        assert not is_finished(epochs=3)
        workdir = copy_of(finished[0], tmp_path)
        (workdir / REPORT).unlink()
        config = read_config(workdir)
        assert not Workdir(workdir, vars(config)).is_finished
        assert Workdir(workdir, vars(dataclasses.replace(config, report=False))).is_finished
        (workdir / LABELS).unlink()
        assert not Workdir(workdir, vars(dataclasses.replace(config, report=False))).is_finished
        # killed after the settings were written, and before the old verdict was taken away
        (workdir / "flags.cfg").write_text((workdir / "flags.cfg").read_text().replace("--epochs=2", "--epochs=3"))
        assert not Workdir(workdir, vars(dataclasses.replace(config, epochs=3))).is_finished

    def test_a_finished_network_stays_with_its_verdict_until_there_is_another(self, finished, tmp_path):
        workdir = copy_of(finished[0], tmp_path)
        rows = (workdir / "metrics.jsonl").read_text()
        for epochs, there in ((2, True), (3, False)):
            directory = Workdir(workdir, vars(dataclasses.replace(read_config(workdir), epochs=epochs)))
            directory.start(42, directory.config)
            directory.close()
            assert has_results(workdir)
            assert (workdir / REPORT).exists()
            assert read_config(workdir).epochs == 2
            assert ((workdir / "metrics.jsonl").read_text() == rows) == there
        directory = Workdir(workdir, vars(directory.config))
        arrays = read_labels(workdir, (2, 16))
        directory.start(42, directory.config)
        directory.finish(sela_tf.load_run(workdir), read_description(workdir), 63, lambda digest: {
            **arrays, "step": np.array(63), "weights_sha256": np.array(digest), "potentials": arrays["potentials"] + 1,
        })  # fmt: skip
        directory.close()
        assert not any((workdir / name).exists() for name in (RESULTS, REPORT))
        assert read_config(workdir).epochs == 3
        np.testing.assert_array_equal(read_labels(workdir, (2, 16))["potentials"], arrays["potentials"] + 1)
        np.testing.assert_array_equal(outputs(workdir), outputs(finished[0]))
        assert not list(workdir.glob("*-00000063*"))

    def test_what_will_not_be_as_before_is_said(self, tmp_path):
        longer = SelaConfig(dataset="digits", num_clusters=16, epochs=500, label_memory=2.0)
        first = Workdir(tmp_path / "run", vars(self.config))
        assert first.changes() == []
        first.start(0, self.config)
        first.close()
        epochs, memory = Workdir(tmp_path / "run", vars(longer)).changes()
        assert "`epochs` was 400, is 500: later relabellings and drops of the learning rate are spread" in epochs
        assert "`label_memory` was 4, is 2" in memory


@pytest.mark.slow
def test_a_run_that_was_killed_in_its_evaluation_labels_exports_and_is_completed(finished, tmp_path):
    workdir = tmp_path / "run"
    program = (
        "import os, signal, sys; from sela_tf import train; from sela_tf.training import run\n"
        "run.judge_run = lambda *args: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.exit(train.main(sys.argv))"
    )
    arguments = [*SMALL, "--report", f"--workdir={workdir}"]
    killed = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, check=False)
    assert killed.returncode == -9
    assert not (workdir / RESULTS).exists()
    np.testing.assert_array_equal(outputs(workdir), outputs(finished[0]))
    (labelled,) = run_doors([[f"--workdir={workdir}", f"--output={tmp_path}/labels.parquet"]], "sela_tf.label")
    (exported,) = run_doors([[f"--workdir={workdir}", f"--export_dir={tmp_path}/served", "--check"]], "sela_tf.export")
    (probed,) = run_doors([[f"--workdir={workdir}", "--stages=embedding", "--untrained"]], "sela_tf.probe")
    assert labelled.returncode == exported.returncode == probed.returncode == 0, (labelled, exported, probed)
    steps = (workdir / "metrics.jsonl").read_text()
    (completed,) = run_doors([arguments])
    assert completed.returncode == 0, completed.stderr
    assert "continues at step 42" in completed.stdout
    # nothing was trained again, and all is as in a run that was not killed
    assert (workdir / "metrics.jsonl").read_text() == steps == (finished[0] / "metrics.jsonl").read_text()
    kept, whole = (json.loads((run / RESULTS).read_text()) for run in (workdir, finished[0]))
    assert {**kept, "config": None} == {**whole, "config": None}
    assert (workdir / REPORT).exists()
    # what alone is missing is made alone
    (workdir / REPORT).unlink()
    before = [(workdir / name).stat().st_mtime_ns for name in (RESULTS, LABELS, WEIGHTS)]
    (drawn,) = run_doors([arguments])
    assert drawn.returncode == 0
    assert (workdir / REPORT).exists()
    assert [(workdir / name).stat().st_mtime_ns for name in (RESULTS, LABELS, WEIGHTS)] == before
    assert json.loads((workdir / REPORT).read_text()) == json.loads((finished[0] / REPORT).read_text())
    assert (workdir / "metrics.jsonl").read_text() == steps


@pytest.mark.slow
def test_a_run_of_an_older_version_opens_labels_exports_and_continues(tmp_path):
    workdir = copy_of(OLD_RUN, tmp_path)
    model = sela_tf.load_run(workdir)
    assert isinstance(model, keras.Model)
    kept = np.load(workdir / LABELS)
    (labelled,) = run_doors([[f"--workdir={workdir}", f"--output={tmp_path}/labels.parquet"]], "sela_tf.label")
    assert labelled.returncode == 0, labelled.stderr
    rows = pyarrow.parquet.read_table(tmp_path / "labels.parquet").to_pydict()
    pixels = load_source("digits").train.images[rows["index"]].astype(np.float32)
    log_probs = tf.nn.log_softmax(model(pixels)).numpy()
    expected = (kept["lam"] * log_probs + kept["potentials"]).argmax(axis=2)
    assert (np.stack([rows["cluster_0"], rows["cluster_1"]], axis=1) == expected).mean() > 0.999
    # where the run trained on them, the transport's own labels, but for what the exact balance moved
    place = {row: i for i, row in enumerate(rows["index"])}
    trained = [place[row] for row in kept["source_rows"].tolist()]
    assert (kept["labels"] == expected[trained].T).mean() > 0.6
    (exported,) = run_doors([[f"--workdir={workdir}", f"--export_dir={tmp_path}/served", "--check"]], "sela_tf.export")
    assert exported.returncode == 0, exported.stderr
    command = (workdir / "flags.cfg").read_text().split()
    refused, finished_run, longer = run_doors(
        [
            [*command, "--seed=1", f"--workdir={workdir}"],
            [*command, f"--workdir={workdir}"],
            [*command, "--epochs=3", f"--workdir={workdir}"],
        ]
    )
    is_one_line(refused, "--seed was 0, is 1")
    assert "This run is finished" in finished_run.stdout
    assert longer.returncode == 0, longer.stderr
    assert "continues at step 4" in longer.stdout
    assert json.loads((workdir / NETWORK).read_text())["step"] == 6
