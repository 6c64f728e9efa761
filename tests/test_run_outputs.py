"""The lines and files of a whole small run."""

from __future__ import annotations

import json
import re

import keras
import numpy as np
import pytest
from fixtures import SMALL, rows, run_door, run_here
from sklearn.datasets import load_digits
from tensorflow.compat.v1.train import summary_iterator

import sela_tf
from sela_tf.data.sources import load_source
from sela_tf.data.splits import hold_out
from sela_tf.settings.fields import ConfigError


class TestFinishedRun:
    def test_prints_a_line_a_relabelling_and_the_table(self, finished):
        workdir, process = finished
        assert process.returncode == 0, process.stderr
        assert process.stderr == ""
        relabel = re.compile(r"relabel step \d+ head [01]: \d+ iterations, [\d.]+% changed, objective [\d.]+ -> [\d.]+, [\d.]+ s$")
        assert sum(bool(relabel.match(line)) for line in process.stdout.splitlines()) == 2 * (3 + 1)
        assert (
            len(re.findall(r"^epoch \d/2: loss [\d.]+, kNN [\d.]+, \d+ images/s, waiting \d+%$", process.stdout, re.MULTILINE)) == 2
        )
        assert "linear probe" in process.stdout
        assert str(workdir) in process.stdout.splitlines()[-1]

    def test_files(self, finished):
        workdir, _ = finished
        names = {
            ".lock",
            "flags.cfg",
            "network.json",
            "model.weights.h5",
            "labels.npz",
            "metrics.jsonl",
            "results.json",
            "timings.jsonl",
            "checkpoints",
            "tensorboard",
            "report.json",
            "report.html",
            "report.png",
            "galleries",
        }
        assert {path.name for path in workdir.iterdir()} == names
        assert [path.name for path in sorted((workdir / "checkpoints").iterdir())] == ["step-00000021", "step-00000042"]
        events = [
            summary
            for file in (workdir / "tensorboard").iterdir()
            for event in summary_iterator(str(file))
            for summary in event.summary.value
        ]
        assert {"train/loss", "epoch/knn", "relabel/head1/marginal_error"} <= {value.tag for value in events}
        with np.load(workdir / "labels.npz") as labels:
            assert labels["labels"].shape == labels["training_labels"].shape == labels["num_changes"].shape == (2, 1344)
            assert labels["potentials"].shape == (2, 16)
            assert float(labels["lam"]) == 25.0
            assert len(str(labels["data_fingerprint"])) == 64
            # three relabellings and the last one; the first does not count as a change
            assert labels["num_changes"].max() <= 3
            sizes = np.stack([np.bincount(head, minlength=16) for head in labels["labels"]])
        assert sizes.min() == sizes.max() == 1344 / 16

    def test_results(self, finished):
        workdir, _ = finished
        results = json.loads((workdir / "results.json").read_text())
        networks, derived = {"trained", "untrained", "raw_pixels"}, {"random_clusters", "intervals", "compared", "without_classes"}
        assert set(results) == networks | derived | {"chance", "training_labels", "transport", "config", "data", "network"}
        assert results["transport"]["converged"] == [True, True]
        for network in networks:
            agreement = {"nmi", "ami", "ari", "hungarian", "purity", "entropy"}
            assert set(results[network]) == {"knn", "linear_probe", "clusters_used", "protocol"} | agreement
            assert len(results[network]["nmi"]) == (1 if network == "raw_pixels" else 2)
            intervals = results["intervals"][network]
            for name in ("knn", "linear_probe", "view_agreement", "neighbour_stability"):
                value = (results if name in results[network] else results["without_classes"])[network][name]
                assert intervals[name][0] <= value <= intervals[name][1]
            for name in agreement:
                for value, (low, high) in zip(results[network][name], intervals[name], strict=True):
                    assert low <= value <= high
        assert results["trained"]["knn"] > 0.8
        assert results["trained"]["ami"][0] > 0.2
        assert results["config"]["num_clusters"] == 16

    def test_metrics_are_repeatable_numbers_and_timings_are_apart(self, finished):
        workdir, _ = finished
        metrics, timings = rows(workdir), rows(workdir, "timings.jsonl")
        assert not any("second" in key for row in metrics for key in row)
        relabel = [row for row in metrics if row["kind"] == "relabel"]
        assert {row["step"] for row in relabel} == {0, 8, 29, 42}
        for row in relabel:
            assert row["converged"]
            assert row["marginal_error"] <= 1e-3
            assert row["smallest_cluster"] == row["largest_cluster"] == 1344 / 16
            assert row["objective_after"] <= row["objective_before"] + 1e-5
            assert 0 <= row["rounding_gap"] < 1e-3
            assert 0 <= row["nmi_with_previous"] <= 1
            assert row["information_share"] == pytest.approx(row["information"] / np.log(16))
        # the course of the agreement with the classes begins at random and ends with what results.json has
        first = [row for row in metrics if row["kind"] == "first_labels"]
        assert [(row["step"], row["head"]) for row in first] == [(0, 0), (0, 1)]
        assert max(row["ami"] for row in first) < 0.02
        last = json.loads((workdir / "results.json").read_text())["training_labels"]
        for name in ("nmi", "ami", "ari", "hungarian", "purity", "entropy"):
            assert [row[name] for row in relabel[-2:]] == last[name]
        assert [row["step"] for row in metrics if row["kind"] == "train"] == list(range(1, 43))
        epochs = [row for row in metrics if row["kind"] == "epoch"]
        assert [row["step"] for row in epochs] == [21, 42]
        mean = np.mean([row["loss"] for row in metrics if row["kind"] == "train"][:21])
        assert epochs[0]["loss"] == pytest.approx(mean, rel=1e-5)
        assert {row["kind"] for row in timings} - {"warning"} == {"relabel", "epoch"}

    def test_load_run_gives_the_trained_network(self, finished):
        workdir, _ = finished
        model = sela_tf.load_run(workdir)
        digits = load_digits()
        embedding = keras.Model(model.input, model.get_layer("embedding").output)
        images = np.rint(digits.images * (255 / 16))[..., np.newaxis].astype(np.float32)
        assert embedding.predict(images, verbose=0).shape == (1797, 32)
        # the labels of the run follow from its network and its potentials, but for the few that were moved to balance them
        with np.load(workdir / "labels.npz") as labels:
            train, _ = hold_out(load_source("digits").train, 0.25)
            logits = model.predict(train.images.astype(np.float32), verbose=0)
            again = (25.0 * logits + labels["potentials"]).argmax(axis=2).T
            assert (again == labels["labels"]).mean() > 0.95

    @pytest.mark.slow
    def test_flags_rerun_the_same_thing(self, finished, tmp_path):
        """The same command twice on one device: the same bits."""
        workdir, _ = finished
        again = run_door(f"--flagfile={workdir / 'flags.cfg'}", f"--workdir={tmp_path / 'again'}")
        assert again.returncode == 0, again.stderr
        for name in ("metrics.jsonl", "results.json", "flags.cfg", "model.weights.h5", "labels.npz"):
            assert (tmp_path / "again" / name).read_bytes() == (workdir / name).read_bytes(), name

    def test_the_same_command_says_so_and_other_settings_are_refused(self, finished):
        workdir, _ = finished
        before = (workdir / "results.json").read_bytes()
        again, other = run_here([[*SMALL, f"--workdir={workdir}"], [*SMALL, f"--workdir={workdir}", "--lam=10"]])
        assert again.returncode == 0
        assert "finished" in again.stdout
        assert "linear probe" in again.stdout
        assert other.returncode == 2
        assert "--lam was 25.0, is 10.0" in other.stderr
        assert (workdir / "results.json").read_bytes() == before

    def test_load_run_of_what_is_no_finished_run(self, finished, tmp_path):
        with pytest.raises(ConfigError, match="holds no run"):
            sela_tf.load_run(tmp_path)
        (tmp_path / "flags.cfg").write_bytes((finished[0] / "flags.cfg").read_bytes())
        with pytest.raises(ConfigError, match="not finished"):
            sela_tf.load_run(tmp_path)
