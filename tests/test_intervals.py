"""Intervals and paired comparisons against scipy, scikit-learn and fresh samples."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import adjusted_mutual_info_score

from sela_tf.evaluation import contingency
from sela_tf.evaluation.bootstrap import (
    NUM_RESAMPLES,
    bootstrap_interval,
    compare_accuracies,
    compare_resampled,
    resampled_means,
    resamples,
    wilson_interval,
)
from sela_tf.evaluation.clustering import cluster_metrics
from sela_tf.evaluation.contingency import ResampledTables, chance_corrected_agreement
from sela_tf.evaluation.intervals import Answers, compare_networks, network_intervals


@pytest.mark.parametrize(("correct", "total"), [(0, 7), (7, 7), (272, 366), (1, 10_000)])
def test_wilson_is_scipys(correct, total):
    expected = stats.binomtest(correct, total).proportion_ci(method="wilson")
    assert wilson_interval(correct, total) == pytest.approx([expected.low, expected.high])


def test_accuracies_are_compared_in_pairs():
    """272 and 274 of 366 are no difference, on whichever images; what one wins on ten images and never loses is."""
    images = np.arange(366)
    assert compare_accuracies(images < 272, images < 274)["outcome"] == "no difference seen"
    assert compare_accuracies(images < 272, images >= 92)["outcome"] == "no difference seen"
    found = compare_accuracies(images < 282, images < 272)
    assert (found["outcome"], found["p"]) == ("better", pytest.approx(2 * 0.5**10))
    assert found["difference"] == pytest.approx(10 / 366)
    assert 0 < found["interval"][0] < found["difference"] < found["interval"][1]
    assert compare_accuracies(images < 272, images < 282)["outcome"] == "worse"
    same = compare_accuracies(images < 5, images < 5)
    assert (same["difference"], same["interval"], same["p"], same["outcome"]) == (0, [0, 0], 1, "no difference seen")


def test_resamples_are_keyed(rng):
    assert all((a == b).all() for a, b in zip(resamples(30, seed=4), resamples(30, seed=4), strict=True))
    assert not all((a == b).all() for a, b in zip(resamples(30, seed=4), resamples(30, seed=5), strict=True))
    values = rng.normal(size=(2, 500))
    resampled = resampled_means(values, seed=0)
    assert resampled.shape == (NUM_RESAMPLES, 2)
    assert resampled.std(axis=0) == pytest.approx(values.std(axis=1) / 500**0.5, rel=0.2)


@pytest.fixture
def clustering(rng):
    classes = rng.integers(0, 5, 300)
    return classes, np.where(rng.random(300) < 0.6, 3 * classes, rng.integers(0, 20, 300))


def test_tables_of_resamples_are_scikit_learns(clustering, monkeypatch):
    classes, clusters = clustering
    tables, names = ResampledTables(classes, clusters, seed=1), ("nmi", "ari", "purity", "entropy", "hungarian", "ami")
    found = tables.agreement(*names, ami=adjusted_mutual_info_score(classes, clusters))
    monkeypatch.setattr(contingency, "_COUNTS_AT_ONCE", 1000)
    for name, values in tables.agreement(*names, ami=adjusted_mutual_info_score(classes, clusters)).items():
        np.testing.assert_array_equal(values, found[name])
    for number, times in zip(range(20), resamples(300, seed=1), strict=False):
        drawn = np.repeat(np.arange(300), times)
        expected = cluster_metrics(classes[drawn], clusters[drawn])
        for name in ("nmi", "ari", "purity", "entropy"):
            assert found[name][number] == pytest.approx(getattr(expected, name)), name
        # what is kept from all images: the matching, and the agreement by chance
        assert expected.hungarian - 0.03 <= found["hungarian"][number] <= expected.hungarian + 1e-9
        assert found["ami"][number] == pytest.approx(expected.ami, abs=0.02)


def test_intervals_hold_what_fresh_samples_do(rng):
    """The standard deviation of AMI over samples of a population is that of the resamples of one of them."""

    def draw():
        classes = rng.integers(0, 5, 400)
        return classes, np.where(rng.random(400) < 0.6, classes, rng.integers(0, 12, 400))

    samples = [draw() for _ in range(60)]
    values = [adjusted_mutual_info_score(*sample) for sample in samples]
    deviations = [
        ResampledTables(*s, seed=0).agreement("ami", ami=v)["ami"].std() for s, v in zip(samples[:5], values[:5], strict=True)
    ]
    assert np.mean(deviations) == pytest.approx(np.std(values), rel=0.3)
    resampled = ResampledTables(*samples[0], seed=0).agreement("ami", ami=values[0])["ami"]
    low, high = bootstrap_interval(values[0], resampled, high=1.0)
    assert low < values[0] < high


def test_a_collapse_agrees_with_nothing():
    one, many = np.zeros(50, int), np.arange(50) % 5
    assert chance_corrected_agreement(one, one) == 0
    assert chance_corrected_agreement(one, many) == 0
    assert chance_corrected_agreement(many, 4 - many) == pytest.approx(1)


def test_networks_are_compared_on_the_same_images(rng):
    """Half of a difference that is seen in pairs is not seen between intervals; an equal clustering has no difference."""
    classes = np.arange(200) % 4
    clusters = np.stack([classes, np.where(rng.random(200) < 0.3, rng.integers(0, 4, 200), classes)])
    worse = clusters.copy()
    worse[:, :10] = rng.integers(0, 4, 10)
    knn = np.arange(200) >= 20
    one, other = Answers({"knn": knn}, clusters), Answers({"knn": knn & (np.arange(200) >= 30)}, worse)
    found = compare_networks(one, other, classes, seed=0)
    assert {name: each["outcome"] for name, each in found.items()} == {"knn": "better", "ami": "better", "ari": "better"}
    back = compare_networks(other, one, classes, seed=0)
    assert {each["outcome"] for each in back.values()} == {"worse"}
    same = compare_networks(one, one, classes, seed=0)
    assert {(each["difference"], each["outcome"]) for each in same.values()} == {(0.0, "no difference seen")}
    figures = {name: [getattr(cluster_metrics(classes, head), name) for head in clusters] for name in ("nmi", "ami", "ari")}
    figures |= {
        name: [getattr(cluster_metrics(classes, head), name) for head in clusters] for name in ("hungarian", "purity", "entropy")
    }
    intervals = network_intervals(one, classes, figures, seed=0)
    assert intervals["knn"] == wilson_interval(180, 200)
    assert intervals["nmi"][0] == [1, 1]
    assert intervals["entropy"][0] == [0, 0]
    assert one.take(np.arange(10)).clusters.shape == (2, 10)
    assert compare_resampled(0.5, np.full(20, 0.9), np.full(20, 0.4))["outcome"] == "better"
