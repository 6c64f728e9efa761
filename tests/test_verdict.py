"""The verdict: how much of a data set it is given on, and that evaluation and report take memory for that alone."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from fixtures import ROOT, SMALL, run_doors
from judged import evaluated

from sela_tf.commands import probe as prober
from sela_tf.data.image_set import ImageSet
from sela_tf.data.stores import Arrays
from sela_tf.evaluation import protocol as protocols
from sela_tf.evaluation.clustering import cluster_metrics
from sela_tf.evaluation.linear_probe import linear_probe_accuracy
from sela_tf.evaluation.metrics import evaluate_chance, evaluate_labels, evaluate_outputs, no_metrics
from sela_tf.evaluation.outputs import evaluation_outputs, network_outputs
from sela_tf.evaluation.protocol import evaluation_images, evaluation_protocol
from sela_tf.models.build import build_model
from sela_tf.reporting.tables import results_table
from sela_tf.runs.workdir import Workdir
from sela_tf.settings.commands import ProbeConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.evaluation import judge
from sela_tf.training.images import Data
from sela_tf.training.initial_state import description_of, first_network
from sela_tf.training.monitoring import class_agreement, knn_monitor
from sela_tf.training.report import write_report

T, K = 2, 4
CONFIG = SelaConfig(
    dataset="digits", backbone="resnet8", width=4, num_heads=T, num_clusters=K, flip_probability=0, batch_size=20, epochs=1
)


class TestProtocol:
    def test_auto_samples_above_a_hundred_thousand(self):
        assert evaluation_protocol("auto", 100_000, 60_000) == ("full", 100_000, 60_000, None, None, 500)
        large = evaluation_protocol("auto", 100_001, 60_000)
        assert (large.kind, large.training_size, large.held_out_size, large.max_iterations) == ("sampled", 50_000, 10_000, 100)
        full = evaluation_protocol("full", 1_281_167, 50_000)
        assert (full.kind, full.training_size, full.held_out_size, full.max_iterations) == ("full", 1_281_167, 50_000, 500)

    def test_samples_are_keyed_increasing_and_without_repeats(self):
        one, again, other = (evaluation_protocol("sampled", 70_000, 20_000, seed=seed) for seed in (3, 3, 4))
        for a, b, c, whole in zip(one[3:5], again[3:5], other[3:5], (70_000, 20_000), strict=True):
            assert (np.diff(a) > 0).all()
            assert 0 <= a[0] < a[-1] < whole
            np.testing.assert_array_equal(a, b)
            assert not np.array_equal(a, c)
        # the same draw would take the same places of two sets of one size
        twins = evaluation_protocol("sampled", 60_000, 60_000)
        assert not np.isin(twins.held_out_sample, twins.training_sample).all()

    def test_small_sets_are_taken_whole(self):
        small = evaluation_protocol("sampled", 50_000, 10_000)
        assert small[3:] == (None, None, 100)
        assert (small.training_words, small.held_out_words) == ("all 50000 training images", "10000 held-out images")

    def test_none_and_nonsense(self):
        none = evaluation_protocol("none", 100, 50)
        assert (none.kind, none.training_size, none.held_out_size) == ("none", 0, 0)
        with pytest.raises(ValueError, match="`evaluate` must be auto, full, sampled or none. Received: evaluate='some'"):
            evaluation_protocol("some", 100, 50)

    def test_is_no_part_of_what_a_run_is(self, tmp_path):
        run = Workdir(tmp_path, vars(CONFIG))
        run.start(0, CONFIG)
        run.close()
        Workdir(tmp_path, vars(dataclasses.replace(CONFIG, evaluate="none")))
        with pytest.raises(ConfigError, match="`evaluate` must be one of auto, full, sampled, none. Received: 'some'"):
            dataclasses.replace(CONFIG, evaluate="some")


def images(rng: np.random.Generator, count: int, name: str = "noise") -> ImageSet:
    """Images that classes can be told from, with a few mistakes."""
    classes = rng.integers(0, 3, count)
    pixels = rng.integers(0, 160, (count, 8, 8, 1)) + 40 * classes[:, None, None, None]
    return ImageSet(name=name, channels=1, store=Arrays(pixels.astype(np.uint8)), classes=classes, image_size=(8, 8))


@pytest.fixture
def data(rng) -> Data:
    return Data(images(rng, 90), images(rng, 70), (8, 8), np.array([120.0]), np.array([9e3]))


@pytest.fixture
def network() -> keras.Model:
    keras.utils.set_random_seed(5)
    return build_model("resnet8", image_shape=(8, 8, 1), num_heads=T, num_clusters=K, width=4, mean=[120.0], variance=[9e3])


@pytest.fixture
def few(monkeypatch) -> None:
    """A sample of 30 training and 20 held-out images."""
    monkeypatch.setattr(protocols, "SAMPLED_TRAINING", 30)
    monkeypatch.setattr(protocols, "SAMPLED_HELD_OUT", 20)


def test_one_pass_gives_embedding_clusters_and_confidence(rng, network, data, passes):
    potentials = (40 * rng.normal(size=(T, K))).astype(np.float32)
    seen = network_outputs(network, data.train, size=(8, 8), potentials=potentials, lam=10.0)
    assert len(passes) == 1
    pixels = data.train.images.astype(np.float32)
    logits = network(pixels).numpy().astype(np.float64).transpose(1, 0, 2)
    embedding = keras.Model(network.input, network.get_layer("embedding").output)(pixels)
    np.testing.assert_allclose(seen.embedding, embedding, atol=1e-4)
    np.testing.assert_array_equal(seen.clusters, logits.argmax(axis=2))
    shares = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    np.testing.assert_allclose(seen.confidence, shares.max(axis=2), atol=1e-5)
    np.testing.assert_array_equal(seen.corrected, (10.0 * np.log(shares) + potentials[:, np.newaxis]).argmax(axis=2))
    assert not np.array_equal(seen.corrected, seen.clusters)
    assert network_outputs(network, data.train, size=(8, 8), embedding=False).embedding.shape == (90, 0)


def test_a_network_is_evaluated_in_one_pass_over_each_set(network, data, passes):
    evaluated(network, evaluation_images(data.train, data.held_out, (8, 8)))
    # Two more have the random views of the held-out images.
    assert len(passes) == 4


def test_sampled_figures_are_those_of_the_sample(rng, few):
    """Sampled figures: of the trained and the untrained network, of chance and of the labels."""

    def vectors(count):
        classes = rng.integers(0, 3, count)
        values = (rng.normal(size=(count, 6)) + classes[:, np.newaxis]).astype(np.float32)
        return ImageSet(name="vectors", channels=6, store=Arrays(values), classes=classes, image_size=())

    network = {"backbone": "identity", "width": 0, "hidden_units": 0, "num_heads": T, "num_clusters": K}
    config = SelaConfig(dataset="features:x.npy", evaluate="sampled", seed=6, **network)
    data = Data(vectors(90), vectors(70), (), np.ones(6), np.ones(6))
    keras.utils.set_random_seed(5)
    network = build_model("identity", image_shape=(6,), num_heads=T, num_clusters=K, mean=[1.0] * 6, variance=[1.0] * 6)
    labels, potentials = rng.integers(0, K, (T, 90)), np.zeros((T, K), np.float32)
    found = judge(config, data, network, labels=labels, potentials=potentials, lam=config.lam).figures
    chosen = evaluation_protocol("sampled", 90, 70, seed=6)
    assert (chosen.training_size, chosen.held_out_size) == (30, 20)
    train, held_out = data.train.take(chosen.training_sample), data.held_out.take(chosen.held_out_sample)
    untrained = first_network(config, description_of(config, data), tf.distribute.get_strategy())
    for column, model, settle in (("trained", network, False), ("untrained", untrained, True)):
        expected = evaluated(model, evaluation_images(train, held_out, ()), fill_statistics=settle)
        words = found[column].pop("protocol")
        del expected["protocol"]
        assert found[column] == expected
        assert "20 of 70 held-out images, drawn at random" in words
        assert "among 30 of 90 training images, drawn at random" in words
        assert "logistic regression, at most 100 iterations, on" in words
        assert "during training and after it: on these training images" in words
    # the solver's limit is the protocol's
    images = evaluation_images(data.train, data.held_out, (), chosen._replace(max_iterations=1))
    outputs = evaluation_outputs(network, images)
    one = evaluate_outputs(outputs, images, num_clusters=K).figures
    arrays = outputs.training.embedding, train.classes, outputs.held_out.embedding, held_out.classes
    assert one["linear_probe"] == linear_probe_accuracy(*arrays, max_iterations=1) != linear_probe_accuracy(*arrays)
    assert found["chance"] == evaluate_chance(held_out.classes, K, seed=6)
    assert found["training_labels"] == evaluate_labels(labels[:, chosen.training_sample], train.classes)


def test_what_is_watched_in_training_is_the_sample(rng, few, data):
    config = dataclasses.replace(CONFIG, evaluate="sampled")
    judge_of, labels = class_agreement(config, data), rng.integers(0, K, 90)
    chosen = evaluation_protocol("sampled", 90, 70)
    expected = cluster_metrics(data.train.classes[chosen.training_sample], labels[chosen.training_sample])
    assert judge_of.of(labels).items() >= expected._asdict().items()
    (monitor,) = knn_monitor(config, data)
    np.testing.assert_array_equal(monitor.eval_classes, data.held_out.classes[chosen.held_out_sample])
    pixels = {int(i): image for images, rows in monitor.eval_batches for i, image in zip(rows, images.numpy(), strict=True)}
    for i, row in enumerate(chosen.held_out_sample):
        np.testing.assert_array_equal(pixels[i], data.held_out.images[row])
    full = class_agreement(CONFIG, data).of(labels)
    assert full.items() >= cluster_metrics(data.train.classes, labels)._asdict().items()


def workdir(path, config: SelaConfig) -> Workdir:
    """Makes the directory of a run, with the first rows of a training."""
    directory = Workdir(path / "run", vars(config))
    directory.start(0, config)
    directory.write_metrics("train", 1, {"epoch": 0, "loss": 1.3})
    directory.write_metrics("epoch", 1, {"epoch": 0, "loss": 1.3, "knn": 0.5})
    for head in range(T):
        directory.write_metrics("relabel", 1, {"head": head, "changed": 0.5, "objective_before": 1.2, "objective_after": 1.1})
    directory.close()
    return directory


def test_none_looks_at_nothing_and_the_rest_goes_on(rng, network, data, passes, tmp_path):
    config = dataclasses.replace(CONFIG, evaluate="none")
    labels = rng.integers(0, K, (T, 90))
    verdict = judge(config, data, network, labels=labels, potentials=np.zeros((T, K), np.float32), lam=config.lam)
    assert class_agreement(config, data) is None
    assert knn_monitor(config, data) == []
    write_report(workdir(tmp_path, config), config, data, labels, verdict.figures, verdict.outputs, with_page=False)
    assert passes == []
    for column in ("trained", "untrained", "raw_pixels", "chance", "training_labels"):
        values = verdict.figures[column]
        words = {values.pop(key) for key in ("reason", "protocol")}
        assert words == {"evaluation was left out (`evaluate=none`)", "evaluation was left out (`evaluate=none`)."}
        keys = {"knn", "linear_probe", "nmi", "ami", "ari", "hungarian", "purity", "entropy", "clusters_used"}
        assert values == dict.fromkeys(keys)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["cluster_sizes"][1] == {"labels": sorted(np.bincount(labels[1], minlength=K), reverse=True), "network": []}
    assert "left out" in report["verdict"]
    assert (tmp_path / "run" / "report.png").stat().st_size > 10_000
    assert not (tmp_path / "run" / "galleries").exists()


def test_none_in_the_table():
    results = dict.fromkeys(("trained", "untrained", "chance"), no_metrics())
    assert results_table(results) == "Evaluation was left out (`evaluate=none`)."


def test_the_report_of_a_sample_shows_what_was_looked_at(rng, few, network, data, tmp_path):
    config = dataclasses.replace(CONFIG, evaluate="sampled")
    chosen = evaluation_protocol("sampled", 90, 70)
    labels = rng.integers(0, K, (T, 90))
    potentials = (40 * rng.normal(size=(T, K))).astype(np.float32)
    outputs = evaluation_outputs(network, evaluation_images(data.train, data.held_out, (8, 8), chosen), potentials=potentials)
    results = dict.fromkeys(("trained", "untrained", "chance"), no_metrics())
    write_report(workdir(tmp_path, config), config, data, labels, results, outputs, with_page=False)
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    sizes = np.bincount(labels[0], minlength=K)
    assert report["cluster_sizes"][0]["labels"] == sorted(sizes, reverse=True)
    assert [sum(head["network"]) for head in report["cluster_sizes"]] == [30, 30]
    clusters = report["gallery"]["best"]
    assert len(clusters) == K
    for one in clusters:
        assert one["size"] == sizes[one["cluster"]]
        counts = np.bincount(data.train.classes[labels[0] == one["cluster"]])
        assert one["share"] == pytest.approx(counts.max() / counts.sum())
        assert set(one["members"]) <= set(chosen.training_sample.tolist())
        assert (labels[0, one["members"]] == one["cluster"]).all()
        assert set(one["held_out_members"]) <= set(chosen.held_out_sample.tolist())
        where = {row: i for i, row in enumerate(chosen.held_out_sample.tolist())}
        assert all(outputs.held_out.corrected[0, where[row]] == one["cluster"] for row in one["held_out_members"])
    assert len(list((tmp_path / "run" / "galleries").iterdir())) == 2


def test_probes_of_a_sample(finished, few, monkeypatch):
    settings = ProbeConfig(workdir=(str(finished[0]),), stages=("embedding",), knn=(1,), evaluate="sampled")
    probed = prober.probe(settings, finished[0])
    assert probed["num_held_out_images"] == 20
    assert probed["protocol"].startswith("20 of 453 held-out images, drawn at random; knn:")
    assert "among 30 of 1344 training images" in probed["protocol"]
    assert "logistic regression, at most 100 iterations, on" in probed["protocol"]
    figures = [*probed["trained"]["knn"].values(), *probed["trained"]["linear_probe"].values()]
    monkeypatch.setattr(protocols, "_SAMPLED_ITERATIONS", 1)
    assert prober.probe(settings, finished[0])["trained"]["linear_probe"] != probed["trained"]["linear_probe"]
    # shares of 20 images
    assert [20 * figure for figure in figures] == pytest.approx([round(20 * figure) for figure in figures])


_MEASURED = """
import pathlib, resource, sys
import numpy as np
import matplotlib.backends.backend_agg, matplotlib.figure, sklearn.linear_model
import sela_tf.training.run
from sela_tf.settings.choices import ImagesSeen, choose
from sela_tf.settings.training import SelaConfig
from sela_tf.data.image_set import ImageSet
from sela_tf.data.stores import Arrays
from sela_tf.evaluation.knn import knn_accuracy
from sela_tf.models.build import build_model
from sela_tf.training.images import Data
from sela_tf.training.report import write_report
from sela_tf.training.evaluation import judge
from sela_tf.runs.workdir import Workdir

N, M, T, K, D = 20_000, 500, 4, 2000, 8
rng = np.random.default_rng(0)

def vectors(count):
    classes = rng.integers(0, 2, count)
    values = (rng.normal(size=(count, D)) + classes[:, None]).astype(np.float32)
    return ImageSet(name="vectors", channels=D, store=Arrays(values), classes=classes, image_size=())

asked_for = SelaConfig(dataset="features:x.npy", backbone="identity", num_heads=T, num_clusters=K, evaluate="full", hidden_units=0)
seen = ImagesSeen(num_images=N, has_held_out=True, side=0, have_one_size=True, channels=D, is_vectors=True)
config = choose(asked_for, seen)[0]
data = Data(vectors(N), vectors(M), (), np.zeros(D), np.ones(D))
shape = {"image_shape": (D,), "num_heads": T, "num_clusters": K}
model = build_model("identity", **shape)
directory = Workdir(sys.argv[1], vars(config))
directory.start(0, config)
directory.write_metrics("train", 1, {"loss": 1.0})
directory.close()
labels = rng.integers(0, K, (T, N))
bank, bank_classes = rng.normal(size=(200_000, 16)).astype(np.float32), rng.integers(0, 1000, 200_000)
# what TensorFlow makes once
model(data.train.images[:500])

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

before = peak()
knn_accuracy(bank, bank_classes, bank[:50], bank_classes[:50])
of_knn = peak() - before
before = peak()
verdict = judge(config, data, model, labels=labels, potentials=np.zeros((T, K), np.float32), lam=config.lam)
write_report(directory, config, data, labels, {**verdict.figures, "config": vars(config)}, verdict.outputs, with_page=False)
print(of_knn, peak() - before, 4 * N * T * K)
"""


@pytest.mark.slow
def test_memory_is_bounded(tmp_path):
    """The logits of all images would take 640 MB, the classes of a bank as a one-hot 800 MB."""
    command = [sys.executable, "-c", _MEASURED, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    of_knn, of_evaluation, of_logits = map(int, done.stdout.split()[-3:])
    assert of_knn < 200e6
    assert of_evaluation < of_logits / 2


@pytest.mark.slow
def test_a_run_without_a_verdict(tmp_path):
    """It labels, exports and is probed as any other; nothing in its files has been compared with classes."""
    (door,) = run_doors([[*SMALL, "--report", "--evaluate=none", "--epochs=1", f"--workdir={tmp_path}/run"]])
    assert door.returncode == 0, door.stderr
    assert "Evaluation was left out (`evaluate=none`)." in door.stdout
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert not any({"knn", "nmi"} & set(row) for row in rows)
    assert not any(row["kind"] == "first_labels" for row in rows)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["trained"]["knn"] is results["chance"]["knn"] is results["training_labels"]["nmi"] is None
    assert (tmp_path / "run" / "report.png").exists()
    (probed,) = run_doors([[f"--workdir={tmp_path}/run", "--stages=embedding", "--knn=1"]], "sela_tf.probe")
    assert probed.returncode == 0, probed.stderr
