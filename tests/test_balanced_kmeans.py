"""Tests of balanced k-means: against scipy's assignment, scikit-learn's KMeans and its checks of estimators."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from sklearn.base import clone
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, make_blobs
from sklearn.utils.estimator_checks import parametrize_with_checks

import sela_tf
from sela_tf.clustering import balanced_kmeans as module
from sela_tf.clustering import vectors as vectors_module

BalancedKMeans = sela_tf.BalancedKMeans


@pytest.fixture(scope="module")
def vectors():
    return make_blobs(240, 4, centers=9, cluster_std=2.0, random_state=1)[0]


def _least(distances: np.ndarray, lower: int, upper: int) -> float:
    """Returns the least sum of squared distances of allowed labels: dummy rows take the places that may stay empty."""
    num_rows, num_clusters = distances.shape
    places = np.repeat(np.arange(num_clusters), upper)
    dummies = np.tile(np.where(np.arange(upper) >= lower, 0.0, 1e12), num_clusters)
    whole = np.concatenate([distances[:, places], np.tile(dummies, (len(places) - num_rows, 1))])
    rows, columns = linear_sum_assignment(whole)
    return float(whole[rows, columns].sum())


@pytest.mark.parametrize(("size_min", "size_max", "lower", "upper"), [(None, None, 34, 35), (10, 60, 10, 60), (30, None, 30, 240)])
def test_labels_are_the_best_for_their_centres(vectors, size_min, size_max, lower, upper):
    found = BalancedKMeans(7, size_min=size_min, size_max=size_max, random_state=0).fit(vectors)
    sizes = np.bincount(found.labels_, minlength=7)
    assert lower <= sizes.min()
    assert sizes.max() <= upper
    distances = cdist(vectors, found.cluster_centers_, "sqeuclidean")
    assert found.inertia_ == pytest.approx(distances[np.arange(240), found.labels_].sum())
    assert found.inertia_ == pytest.approx(_least(distances, lower, upper))
    assert 0 <= found.assignment_gap_ < 1e-6


def test_it_ends_where_centres_are_means_and_predicts_by_price(vectors):
    found = BalancedKMeans(7, tol=0, random_state=0).fit(vectors)
    assert found.n_iter_ < 100
    for k in range(7):
        np.testing.assert_allclose(found.cluster_centers_[k], vectors[found.labels_ == k].mean(axis=0))
    priced = cdist(vectors, found.cluster_centers_, "sqeuclidean") - found.prices_
    predicted = found.predict(vectors)
    np.testing.assert_allclose(priced[np.arange(240), predicted], priced.min(axis=1), atol=1e-9)
    assert (predicted == found.labels_).mean() > 0.95
    # Every label, too, is one of the best at these prices.
    assert (priced[np.arange(240), found.labels_] <= priced.min(axis=1) + 1e-6).all()


def test_more_assignments_never_raise_the_inertia(vectors):
    start = vectors[::35][:7]
    inertia = [BalancedKMeans(7, init=start, max_iter=count, tol=0).fit(vectors).inertia_ for count in range(1, 12)]
    assert (np.diff(inertia) <= 1e-9).all()


def test_without_bounds_that_bind_it_is_k_means(vectors):
    start = vectors[::35][:7]
    free = BalancedKMeans(7, size_min=1, init=start, tol=0).fit(vectors)
    expected = KMeans(7, init=start, n_init=1, tol=0).fit(vectors)
    np.testing.assert_array_equal(free.labels_, expected.labels_)
    assert free.inertia_ == pytest.approx(expected.inertia_)
    np.testing.assert_array_equal(free.predict(vectors), free.labels_)
    huge = BalancedKMeans(7, size_min=1, size_max=2**62, init=start, tol=0).fit(vectors)
    np.testing.assert_array_equal(huge.labels_, free.labels_)


@pytest.mark.parametrize("bounds", [pytest.param({}, marks=pytest.mark.slow), {"size_min": 60, "size_max": 400}])
def test_large_data_take_the_other_ways_to_the_same_inertia(monkeypatch, tmp_path, bounds):
    """The entropic transport at the start, distances that are computed at every reading, and vectors in a file."""
    X = make_blobs(3000, 6, centers=25, cluster_std=3.0, random_state=0)[0].astype(np.float32)
    start = X[::120].copy()
    expected = BalancedKMeans(25, init=start, **bounds).fit(X)
    monkeypatch.setattr(module, "_FEW_ENTRIES", 0)
    solved = BalancedKMeans(25, init=start, **bounds).fit(X)
    monkeypatch.setattr(module, "_MOST_STORED", 0)
    monkeypatch.setattr(vectors_module, "_MOST_COPIED", 0)
    for each in (module, vectors_module):
        monkeypatch.setattr(each, "BLOCK_ENTRIES", 10_000)
    np.save(tmp_path / "vectors.npy", X)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    computed = BalancedKMeans(25, init=start, **bounds).fit(mapped)
    for other in (solved, computed):
        assert other.inertia_ == pytest.approx(expected.inertia_, rel=1e-2)
        sizes = np.bincount(other.labels_, minlength=25)
        assert bounds.get("size_min", 120) <= sizes.min()
        assert sizes.max() <= bounds.get("size_max", 120)
        distances = cdist(X, other.cluster_centers_, "sqeuclidean")
        assert other.inertia_ == pytest.approx(distances[np.arange(3000), other.labels_].sum(), rel=1e-5)
        assert other.assignment_gap_ <= 1e-3 * other.inertia_
    np.testing.assert_array_equal(computed.predict(mapped), computed.predict(X))


def test_a_large_offset_changes_nothing(vectors):
    start = vectors[::35][:7]
    expected = BalancedKMeans(7, init=start).fit(vectors)
    shifted = BalancedKMeans(7, init=start + 2.0**30).fit(vectors + 2.0**30)
    np.testing.assert_array_equal(shifted.labels_, expected.labels_)
    near = BalancedKMeans(7, init=start + 1024).fit((vectors + 1024).astype(np.float32))
    assert near.inertia_ == pytest.approx(expected.inertia_, rel=1e-3)
    assert near.cluster_centers_.dtype == np.float32


def test_starts(vectors):
    first = BalancedKMeans(7, random_state=3).fit(vectors)
    np.testing.assert_array_equal(first.labels_, clone(first).fit(vectors).labels_)
    runs = [BalancedKMeans(7, init="random", n_init=count, random_state=3).fit(vectors).inertia_ for count in (1, 5)]
    assert runs[1] <= runs[0]
    given = BalancedKMeans(7, init=lambda X, n, random_state: X[:n]).fit(vectors)
    assert given.inertia_ == BalancedKMeans(7, init=vectors[:7]).fit(vectors).inertia_
    loaded = pickle.loads(pickle.dumps(first))  # noqa: S301 (made in the line itself)
    np.testing.assert_array_equal(loaded.predict(vectors), first.predict(vectors))


def test_rows_that_are_equal_are_divided():
    found = BalancedKMeans(3, random_state=0).fit(np.ones((10, 2)))
    assert sorted(np.bincount(found.labels_)) == [3, 3, 4]
    assert found.inertia_ == 0
    assert BalancedKMeans(1).fit(np.arange(6.0).reshape(3, 2)).labels_.tolist() == [0, 0, 0]


def test_digits_are_as_tight_as_the_sizes_allow():
    X = load_digits().data
    found, free = (kind(10, n_init=1, random_state=0).fit(X) for kind in (BalancedKMeans, KMeans))
    assert set(np.bincount(found.labels_)) == {179, 180}
    assert found.inertia_ <= 1.02 * free.inertia_


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_clusters": 0}, "`n_clusters` must be a positive integer. Received: n_clusters=0"),
        ({"n_clusters": 2.0}, "n_clusters=2.0"),
        ({"n_clusters": 241}, "n_samples=240 rows, which are fewer than n_clusters=241"),
        ({"size_min": 40}, "at least 280 and at most 1680 rows in all"),
        ({"size_max": 30}, "at least 0 and at most 210"),
        ({"size_min": 30, "size_max": 20}, "30 and 20 of cluster 0"),
        ({"size_min": 3.5}, "`size_min` must be a whole number of rows, not negative, or 7 such numbers. Received: 3.5"),
        ({"size_max": [240, 240]}, "`size_max`"),
        ({"size_min": -1}, "`size_min`.*-1"),
        ({"size_min": 2**62, "size_max": 2**62}, "at least 1687 and at most 1687 rows in all"),
        ({"size_max": [2**63] * 6 + [-1]}, "`size_max`"),
        ({"init": "kmeans"}, "`init`.*'kmeans'"),
        ({"init": np.zeros((7, 3))}, r"finite centres \[7, 4\]. Received: shape \(7, 3\)"),
        ({"init": np.full((7, 4), np.nan)}, "finite centres"),
        ({"n_init": 0}, "n_init=0"),
        ({"max_iter": 0}, "max_iter=0"),
        ({"tol": -1.0}, "tol=-1.0"),
        ({"tol": np.nan}, "tol=nan"),
    ],
)
def test_refuses_by_name(vectors, parameters, message):
    with pytest.raises(ValueError, match=message):
        BalancedKMeans(**{"n_clusters": 7} | parameters).fit(vectors)


@pytest.mark.slow
@parametrize_with_checks([BalancedKMeans()])
def test_scikit_learn_accepts_the_estimator(estimator, check):
    check(estimator)
