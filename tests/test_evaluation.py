"""Figures against scikit-learn and against cases worked out by hand."""

from __future__ import annotations

import tracemalloc

import keras
import numpy as np
import pytest
import tensorflow as tf
from judged import evaluated
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sela_tf.callbacks.monitors import KNNMonitor
from sela_tf.data.image_set import ImageSet
from sela_tf.data.stores import Arrays
from sela_tf.evaluation import linear_probe
from sela_tf.evaluation.clustering import cluster_metrics
from sela_tf.evaluation.knn import knn_accuracy, knn_classes
from sela_tf.evaluation.linear_probe import linear_probe_accuracy
from sela_tf.evaluation.metrics import evaluate_chance, evaluate_labels
from sela_tf.evaluation.protocol import evaluation_images
from sela_tf.models.build import build_model
from sela_tf.reporting.tables import results_table


@pytest.fixture
def blobs(rng):
    """(features, classes) of three overlapping blobs, for training and for evaluation."""
    centres = rng.normal(size=(3, 5))

    def draw(count):
        classes = rng.integers(0, 3, count)
        return (centres[classes] + 0.8 * rng.normal(size=(count, 5))).astype(np.float32), classes

    return *draw(1200), *draw(2300)


@pytest.mark.parametrize("k", [1, 10, 50])
def test_knn_is_scikit_learns_with_these_weights(blobs, k):
    bank, bank_classes, queries, classes = blobs

    def unit(x):
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    # of unit vectors, cosine similarity is 1 - d^2 / 2
    peer = KNeighborsClassifier(k, weights=lambda distance: np.exp((1 - distance**2 / 2) / 0.1)).fit(unit(bank), bank_classes)
    expected = peer.score(unit(queries), classes)
    assert knn_accuracy(bank, bank_classes, queries, classes, k=k) == pytest.approx(expected, abs=0.002)


def test_knn_with_fewer_images_than_neighbours(blobs):
    bank, bank_classes, queries, classes = blobs
    assert 0 < knn_accuracy(bank[:5], bank_classes[:5], queries, classes, k=10) <= 1
    with pytest.raises(ValueError, match="k=0"):
        knn_accuracy(bank, bank_classes, queries, classes, k=0)


@pytest.mark.parametrize(
    ("count", "k", "bank_rows"),
    [(1, 3, 4096), (7, 10, 4096), (300, 10, 4), (300, 200, 64), (300, 5, 1), (301, 10, 300), (257, 40, 50)],
)
def test_knn_in_blocks_is_numpys(rng, count, k, bank_rows):
    """Whatever the blocks: smaller than k, of one row, with a rest of one; fewer rows than k; more queries than a block of them."""
    centres = rng.normal(size=(4, 6))

    def draw(number):
        classes = rng.integers(0, 4, number)
        return (centres[classes] + rng.normal(size=(number, 6))).astype(np.float32), classes

    (bank, bank_classes), (queries, _) = draw(count), draw(1100)
    unit, unit_bank = (values / np.linalg.norm(values.astype(np.float64), axis=1, keepdims=True) for values in (queries, bank))
    similarity = unit @ unit_bank.T
    votes = np.zeros((1100, 4))
    for row, near in enumerate(np.argsort(-similarity, axis=1)[:, :k]):
        np.add.at(votes[row], bank_classes[near], np.exp(similarity[row, near] / 0.1))
    found = knn_classes(bank, bank_classes, queries, num_classes=4, k=k, bank_rows=bank_rows)
    np.testing.assert_array_equal(found, votes.argmax(axis=1))


def test_knn_of_equally_near_takes_the_first(rng):
    """Blocks give what one comparison with the whole bank gives."""
    bank = np.repeat(rng.normal(size=(1, 5)), 12, axis=0).astype(np.float32)
    classes = np.array([1, 1, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2])
    for bank_rows in (1, 2, 5, 12):
        assert knn_classes(bank, classes, bank[:1], num_classes=3, k=3, bank_rows=bank_rows).tolist() == [1]
        assert knn_classes(bank, classes, bank[:1], num_classes=3, k=5, bank_rows=bank_rows).tolist() == [0]
    with pytest.raises(ValueError, match="bank_rows=0"):
        knn_classes(bank, classes, bank, num_classes=3, bank_rows=0)


def test_linear_probe_in_blocks_is_scikit_learns_pipeline(blobs, monkeypatch):
    """No other copy of the features is made than the standardised one."""
    bank, bank_classes, queries, classes = blobs
    peer = make_pipeline(StandardScaler(), LogisticRegression(max_iter=500)).fit(bank, bank_classes)
    monkeypatch.setattr(linear_probe, "_VALUES_AT_ONCE", 4000)
    assert linear_probe_accuracy(bank, bank_classes, queries, classes) == pytest.approx(peer.score(queries, classes), abs=1e-3)
    wide = np.tile(bank, (1, 40))
    tracemalloc.start()
    linear_probe_accuracy(wide, bank_classes, wide[:10], bank_classes[:10], max_iterations=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * wide.nbytes


def test_the_linear_probe_stops_where_it_is_told(blobs):
    bank, bank_classes, _, _ = blobs
    hard = np.concatenate([bank, np.random.default_rng(1).normal(size=(1200, 60))], axis=1).astype(np.float32)
    assert linear_probe_accuracy(hard, bank_classes, hard, bank_classes, max_iterations=1) < linear_probe_accuracy(
        hard, bank_classes, hard, bank_classes
    )


def test_linear_probe_does_not_care_for_scale(blobs):
    bank, bank_classes, queries, classes = blobs
    accuracy = linear_probe_accuracy(bank, bank_classes, queries, classes)
    scale = np.array([1e-3, 1.0, 1e3, 10.0, 0.1], np.float32)
    assert accuracy == pytest.approx(linear_probe_accuracy(bank * scale, bank_classes, queries * scale, classes), abs=1e-3)
    assert accuracy > 0.7


def test_cluster_metrics_by_hand():
    classes = np.array([0, 0, 0, 1, 1, 1])
    assert cluster_metrics(classes, 1 - classes) == (1.0, 1.0, 1.0, 1.0, 1.0, 0.0)
    # clusters of classes 0 0 | 0 | 1 1 1: class 0 is matched with the larger part, five of six count
    metrics = cluster_metrics(classes, np.array([2, 2, 0, 1, 1, 1]))
    assert metrics.hungarian == pytest.approx(5 / 6)
    entropy = -(2 / 6 * np.log(2 / 6) + 1 / 6 * np.log(1 / 6) + 3 / 6 * np.log(3 / 6))
    assert metrics.nmi == pytest.approx(np.log(2) / ((np.log(2) + entropy) / 2))
    assert cluster_metrics(classes, np.zeros(6, int)).nmi == 0
    # of clusters 0 0 0 1 | 1 1, wherever empty ones lie
    metrics = cluster_metrics(classes, np.array([7, 7, 7, 7, 3, 3]))
    assert metrics.purity == pytest.approx((3 / 4 + 1) / 2)
    assert metrics.entropy == pytest.approx(-(3 / 4 * np.log(3 / 4) + 1 / 4 * np.log(1 / 4)) / 2)


def test_chance_is_that_of_random_labels(rng):
    classes = rng.integers(0, 10, 5000)
    chance = evaluate_chance(classes, 128, seed=0)
    assert chance["knn"] == np.bincount(classes).max() / 5000
    assert abs(chance["ami"][0]) < 0.01
    assert 0 < chance["nmi"][0] < 0.1


class TestNetwork:
    @pytest.fixture
    def images(self, rng):
        """Bright and dark images: any network tells them apart."""
        classes = np.arange(60) % 2
        pixels = (rng.integers(0, 100, (60, 8, 8, 1)) + 150 * classes[:, None, None, None]).astype(np.uint8)
        return ImageSet(name="bright", channels=1, store=Arrays(pixels), classes=classes)

    @staticmethod
    def network():
        keras.utils.set_random_seed(0)
        return build_model("resnet8", image_shape=(8, 8, 1), num_heads=2, num_clusters=4, width=4, mean=[120.0], variance=[9e3])

    def test_all_figures(self, images):
        model = self.network()
        results = evaluated(model, evaluation_images(images, images, (8, 8)))
        assert results["knn"] == 1.0
        assert results["linear_probe"] == 1.0
        clusters = model(images.images.astype(np.float32)).numpy().argmax(axis=2)
        assert results["nmi"] == [cluster_metrics(images.classes, clusters[:, head]).nmi for head in range(2)]
        assert results["clusters_used"] == [len(np.unique(clusters[:, head])) for head in range(2)]
        assert "K = 4" in results["protocol"]

    def test_without_classes_the_rest_works_and_says_why(self, images):
        nameless = ImageSet(name="x", channels=1, store=images.store)
        results = evaluated(self.network(), evaluation_images(nameless, nameless, (8, 8)))
        assert results["knn"] is None
        assert results["nmi"] is None
        assert results["reason"] == "the images have no class labels"
        assert len(results["clusters_used"]) == 2
        text = results_table({"trained": results, "config": {"num_clusters": 4}})
        assert "are left out" in text

    def test_table(self, images):
        trained = evaluated(self.network(), evaluation_images(images, images, (8, 8)))
        chance = evaluate_chance(images.classes, 4, seed=0)
        text = results_table({"trained": trained, "untrained": trained, "chance": chance, "config": {"num_clusters": 4}})
        rows = {line[:26].strip(): line[26:].split() for line in text.splitlines() if line}
        assert rows["kNN accuracy"] == ["1.000", "1.000", "0.500"]
        assert len(rows["NMI, head 1"]) == 3

    def test_monitor_gives_knn_to_the_callbacks_that_follow(self, images):
        model = self.network()
        batches = tf.data.Dataset.from_tensor_slices((images.images.astype(np.float32), np.arange(60))).batch(20)
        model.compile("sgd", loss=lambda y, logits: tf.reduce_mean(logits**2))
        monitor = KNNMonitor(
            "embedding", train_batches=batches, train_classes=images.classes, eval_batches=batches, eval_classes=images.classes
        )
        history = model.fit(batches, epochs=2, shuffle=False, verbose=0, callbacks=[monitor])
        assert history.history["knn"] == [1.0, 1.0]


def test_labels_without_classes():
    labels = np.array([[0, 1, 1], [0, 0, 0]])
    assert evaluate_labels(labels, None)["clusters_used"] == [2, 1]
    assert evaluate_labels(labels, None)["nmi"] is None
