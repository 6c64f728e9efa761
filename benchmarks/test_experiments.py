"""The programs that make the tables of the docs: labels without equal clusters, plain Sinkhorn, rows and their tables."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import platform
import subprocess
import sys

import numpy as np
import oracle
import pytest
import tensorflow as tf
from fixtures import ROOT, SMALL
from sklearn.metrics import normalized_mutual_info_score

import sela_tf
from benchmarks import experiment_tables, experiments
from benchmarks.experiment_rows import ROWS_OF, TABLES, TRANSFER, Peer, Row
from benchmarks.experiments import course
from benchmarks.other_labels import DeepClusterExperiment, argmax, deep_clusters, renumbered
from benchmarks.regularisation import plain_iterations
from sela_tf.data.sources import load_source
from sela_tf.settings.commands import ProbeConfig
from sela_tf.settings.training import SelaConfig


def test_plain_iterations_are_those_of_the_formula(rng):
    log_probs = oracle.log_probs(rng, 500, 12, spread=2.0)
    for lam in (1.0, 10.0):
        scores, v, count = lam * log_probs.astype(np.float64), np.zeros(12), 1
        while np.abs((mass := oracle.marginals(scores, v)) - 1 / 12).sum() > 1e-3:
            v, count = v + np.log(1 / 12) - np.log(mass), count + 1
        assert plain_iterations(log_probs, lam, 10_000) == count > 2
    assert plain_iterations(log_probs, 10.0, 2) is None


def test_argmax_is_the_networks_own_opinion(rng):
    features, kernel, bias = (rng.normal(size=shape).astype(np.float32) for shape in ((20, 3), (3, 5), (5,)))
    found = argmax(sela_tf.LinearLogits(features, kernel, bias))
    np.testing.assert_array_equal(found.labels, (features @ kernel + bias).argmax(axis=1))


def test_deep_clusters_are_groups_whatever_their_scale(rng):
    """Whitened: the first value, a thousand times as large as what tells the groups apart, does not decide."""
    groups = np.repeat(np.arange(6), 50)
    features = np.concatenate([1000 * rng.normal(size=(300, 1)), np.eye(6)[groups] + 0.01 * rng.normal(size=(300, 6))], axis=1)
    clusters = deep_clusters(features, 6, seed=0)
    assert normalized_mutual_info_score(groups, clusters) > 0.8


def test_clusters_get_the_numbers_under_which_most_labels_stay(rng):
    before = rng.integers(0, 5, 200)
    clusters = (before + 2) % 6
    np.testing.assert_array_equal(renumbered(clusters, before, 6), before)
    clusters[:20] = rng.integers(0, 6, 20)
    kept = max((np.array(numbers)[clusters] == before).sum() for numbers in itertools.permutations(range(6)))
    found = renumbered(clusters, before, 6)
    assert (found == before).sum() == kept
    np.testing.assert_array_equal(found[:, np.newaxis] == found, clusters[:, np.newaxis] == clusters)


def test_even_views_draw_clusters_equally_often():
    config = SelaConfig(dataset="digits", backbone="resnet8", width=1, num_heads=1, num_clusters=3, crop_scale=0.5, rotation=False)
    experiment = DeepClusterExperiment(config, tf.distribute.get_strategy())
    # clusters of 1, 100 and all other images
    initial = np.full((1, len(experiment.data.train)), 2)
    initial[0, 0], initial[0, 1:101] = 0, 1
    experiment.labels.assign(0, initial[0])
    views = experiment.views(0, 50, batch_size=60)
    batches = list(views.as_numpy_iterator())
    assert batches[0][0].shape == (60, 8, 8, 1)
    labels = initial[0][np.concatenate([indices for _, indices in batches])]
    # 3000 draws: five standard deviations
    np.testing.assert_allclose(np.bincount(labels) / len(labels), 1 / 3, atol=5 * np.sqrt(2 / 9 / 3000))
    again = list(experiment.views(49, 50, batch_size=60).as_numpy_iterator())
    np.testing.assert_array_equal(again[0][0], batches[49][0])


@pytest.mark.slow
@pytest.mark.parametrize("way", ["kmeans", "argmax"])
def test_other_labels_make_a_whole_run(way, tmp_path):
    command = [sys.executable, "-m", "benchmarks.other_labels", way, *SMALL, "--num_heads=1", f"--workdir={tmp_path}/run"]
    subprocess.run(command, check=True, cwd=ROOT, capture_output=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    relabellings = [line for line in lines if line["kind"] == "relabel"]
    assert len(relabellings) > 2
    for line in relabellings[:-1] if way == "kmeans" else []:
        # heads that start anew know nothing
        assert line["objective_after"] == pytest.approx(np.log(16), abs=0.05)
    if way == "kmeans":
        # numbered at random, 15 labels of 16 would change
        assert relabellings[-1]["changed"] < 0.7
    if way == "argmax":
        assert relabellings[0]["largest_cluster"] > 2 * 1344 / 16
        # the labels that a network holds most likely are the cheapest
        assert all(line["objective_after"] <= line["objective_before"] for line in relabellings)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["trained"]["knn"] > 0.5


def test_recipes_are_chosen_without_a_test_image(fashion_mnist, tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "RUNS", tmp_path / "runs")
    train_set = load_source(f"idx:{fashion_mnist}").train
    splits = load_source(f"npz:{experiments.held_out_images()}")
    np.testing.assert_array_equal(np.concatenate([splits.train.images, splits.eval.images]), train_set.images)
    np.testing.assert_array_equal(np.concatenate([splits.train.classes, splits.eval.classes]), train_set.classes)
    assert len(splits.eval) == 10_000
    calls = []
    monkeypatch.setattr(experiments, "call", lambda *command: calls.append(command))
    for name, row in ROWS_OF.items():
        if name.startswith("tried_"):
            (tmp_path / name).mkdir()
            experiments.train(row, tmp_path / name, 0)
            # the last of a flag counts
            assert [flag for flag in calls.pop() if flag.startswith("--dataset=")][-1:] == [
                f"--dataset=npz:{tmp_path}/runs/held_out.npz"
            ]


def test_probes_are_made_anew_when_others_are_asked_for(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(experiments, "call", lambda *command: calls.append(command))
    probed = ProbeConfig(workdir=("elsewhere",), stages=("embedding",), kmeans=(128,))
    settings = {name: value for name, value in dataclasses.asdict(probed).items() if name not in ("workdir", "seed")}
    (tmp_path / "probes.json").write_text(json.dumps({"settings": settings}))
    experiments.probe(Row("digits", probe=("--stages=embedding", "--kmeans=128")), tmp_path)
    assert not calls
    experiments.probe(Row("digits", probe=("--stages=embedding", "--kmeans=128", "--untrained")), tmp_path)
    assert calls == [("sela_tf.probe", f"--workdir={tmp_path}", "--stages=embedding", "--kmeans=128", "--untrained")]


def test_a_count_that_was_cut_is_shown_as_such(tmp_path, monkeypatch):
    line = {"lam": 5.0, "at_most": 300, "iterations": 4, "seconds": 0.4, "plan_above_exact": 0.03, "same_labels": 0.99}
    line |= {"smallest_cluster": 446, "largest_cluster": 483}
    monkeypatch.setattr(experiment_tables, "REGULARISATION", tmp_path / "found.json")
    (tmp_path / "found.json").write_text(
        json.dumps({str(i): [{**line, "plain_iterations": n}] for i, n in enumerate([120, None, None])})
    )
    cells = [cell.strip() for cell in experiment_tables.regularisation_table().splitlines()[-1].split("|")]
    assert cells[1:8] == ["5", "> 300", "4", "0.40", "0.0300", "99.00", "446 to 483"]


def test_course_counts_training_and_the_relabellings_before():
    metrics = [{"kind": "epoch", "epoch": e, "step": 10 * (e + 1), "knn": 0.5, "loss": 1.0} for e in range(2)]
    timings = [
        *({"kind": "epoch", "epoch": e, "step": 10 * (e + 1), "images_per_second": 50.0} for e in range(2)),
        *({"kind": "relabel", "step": step, "seconds": 3.0} for step in (0, 5, 10, 20)),
    ]
    # two epochs of 100 images; the relabelling after the last step is that of the results
    assert [point["training_seconds"] for point in course(metrics, timings, 100)] == [2 + 6, 4 + 9]


def test_tables_are_of_rows_that_can_be_run():
    named = {row for table in TABLES.values() for row in table.rows} | set(TRANSFER)
    assert named <= set(ROWS_OF)
    for row in ROWS_OF.values():
        if isinstance(row, Row):
            assert (ROOT / "configs" / f"{row.config}.cfg").exists()
            assert not row.labels_of or isinstance(ROWS_OF[row.labels_of], Row)
        else:
            assert isinstance(row, Peer)


def test_a_table_has_mean_and_interval_of_the_seeds_that_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment_tables, "ROWS", tmp_path)
    for seed, accuracy in enumerate((0.8, 0.9)):
        row = {
            "probes": {"trained": {"knn": {"10": accuracy}, "linear_probe": {"embedding": 0.7}, "kmeans": {"128": {"nmi": [0.4]}}}},
            "course": [{"epoch": 1, "training_seconds": 10.0 + seed}],
        }
        (tmp_path / f"simclr-{seed}.json").write_text(json.dumps(row))
    header, _, line = experiment_tables.table("recipe").splitlines()
    cells = dict(zip([cell.strip() for cell in header.split("|")], [cell.strip() for cell in line.split("|")], strict=True))
    # Student's t for one degree of freedom: 12.706 standard errors of .05
    assert cells["kNN, k = 10"] == "0.850 ± 0.635"
    assert (cells["row"], cells["seeds"], cells["NMI, k-means"], cells["training, s"]) == ("simclr", "2", "0.400 ± 0.000", "10")
    (tmp_path / "simclr-0.json").rename(tmp_path / "tried_rate_20-0.json")
    assert "`--learning_rate=0.2`" in experiment_tables.table("tried")


def test_rows_are_named_by_how_they_depart_from_a_base():
    base = Row("digits", ("--epochs=5", "--batch_size=8"))
    assert experiment_tables.departure(base, base) == "nothing"
    rows = Row("digits", ("--epochs=5", "--batch_size=4")), Row("fashion_mnist", ("--epochs=5",))
    assert [experiment_tables.departure(row, base) for row in rows] == ["`--batch_size=4`", "fashion_mnist.cfg"]
    by_another = base._replace(program=("benchmarks.other_views", "bank"))
    assert experiment_tables.departure(by_another, base) == "`benchmarks.other_views bank`"


def test_a_row_says_what_it_was_made_by(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "RUNS", tmp_path)

    def call(*command: str) -> None:
        (output,) = (argument.partition("=")[2] for argument in command if argument.startswith("--output="))
        pathlib.Path(output).write_text(json.dumps({"probes": {}}))

    monkeypatch.setattr(experiments, "call", call)
    row = experiments.run("simclr", 0)
    assert row["processor"] in pathlib.Path("/proc/cpuinfo").read_text() or row["processor"] == platform.machine()
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    assert row["revision"] == head
    # kept with the run: a row that is written again on another day or machine still says who trained it
    made_by = {"revision": "then", "processor": "there"}
    (tmp_path / "simclr-0" / "made_by.json").write_text(json.dumps(made_by))
    assert made_by.items() <= experiments.run("simclr", 0).items()


def test_a_row_again_probes_only_what_is_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(experiments, "RUNS", tmp_path)
    probed = []

    def call(program: str, *arguments: str) -> None:
        (workdir,) = (pathlib.Path(argument.partition("=")[2]) for argument in arguments if argument.startswith("--workdir="))
        workdir.mkdir(exist_ok=True)
        if program == "sela_tf.probe":
            probed.append(arguments)
            (workdir / "probes.json").write_text(json.dumps({"trained": {}, "protocol": ""}))
            return
        results = {"trained": {}, "untrained": {}, "training_labels": {}, "data": {"num_training_images": 1}}
        (workdir / "results.json").write_text(json.dumps(results))
        for file in ("metrics.jsonl", "timings.jsonl"):
            (workdir / file).touch()

    monkeypatch.setattr(experiments, "call", call)
    assert {"revision", "processor"} <= set(experiments.run("resnet8", 0))
    experiments.run("resnet8", 0, again=True)
    assert ["--untrained" in arguments for arguments in probed] == [True, False]
    assert "--kmeans=128" in probed[1]
