"""Tests of a transport whose rows several workers share: threads here, processes in test_workers.py."""

from __future__ import annotations

import numpy as np
import oracle
import pytest
from thread_workers import in_threads

from sela_tf.transport import candidates as candidates_module
from sela_tf.transport.assignment import Assignment, assign_labels
from sela_tf.transport.errors import KnownLabelsError, NotFiniteError
from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.rows import Rows
from sela_tf.transport.shards import ALONE
from sela_tf.transport.sinkhorn import sinkhorn


def _features(rng: np.random.Generator, num_rows: int, num_clusters: int, scale: float = 1.0) -> LinearLogits:
    """Clustered features, and a head that tells the clusters apart."""
    centres = rng.normal(size=(num_clusters, 16))
    features = centres[rng.integers(num_clusters, size=num_rows)] + 0.7 * rng.normal(size=(num_rows, 16))
    return LinearLogits(features.astype(np.float32), (scale * centres.T).astype(np.float32), np.zeros(num_clusters, np.float32))


def _part(source, rows: np.ndarray):
    return source._replace(features=source.features[rows]) if isinstance(source, LinearLogits) else source[rows]


def _shared(source, shares: list[np.ndarray], *, rounding: float = 0.0, known=None, **options) -> list[Assignment]:
    """The assignments of workers with these rows each."""

    def work(shards):
        rows = shares[shards.index]
        held = {} if known is None else {"known": known[rows]}
        return assign_labels(_part(source, rows), shards=shards, **held, **options)

    found = in_threads(len(shares), work, rounding)
    for outcome in found:
        if isinstance(outcome, Exception):
            raise outcome
    return found


def _shares(rng: np.random.Generator, num_rows: int, count: int) -> list[np.ndarray]:
    """Uneven shares of rows in any order: a fifth, and the others' parts of the rest."""
    ends = num_rows // 5 + np.arange(count - 1) * (4 * num_rows // 5) // (count - 1)
    return np.split(rng.permutation(num_rows), ends)


def _together(found: list[Assignment], shares: list[np.ndarray]) -> np.ndarray:
    labels = np.empty(sum(map(len, shares)), np.int64)
    labels[np.concatenate(shares)] = np.concatenate([each.labels for each in found])
    return labels


def _objective(source, labels: np.ndarray) -> float:
    log_probs = source.log_probs() if isinstance(source, LinearLogits) else source
    return float(np.take_along_axis(log_probs, labels[:, np.newaxis], axis=1).mean(dtype=np.float64))


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lam": 250.0},
        {"lam": 1.0, "marginals": "zipf"},
        {"marginals": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)},
        {"size_min": 60, "size_max": 200},
        {"known": True},
        {"known": True, "size_min": 90},
        {"memory_limit": 2**14},
        {"initial_potentials": np.linspace(-3, 3, 12)},
    ],
    ids=str,
)
@pytest.mark.parametrize("form", ["matrix", "features"])
def test_few_rows_get_the_labels_of_one_worker(rng, count, options, form):
    """The optimum of so few entries is unique."""
    source = _features(rng, 1500, 12) if form == "features" else oracle.log_probs(rng, 1500, 12)
    if options.get("known"):
        known = np.where(rng.random(1500) < 0.3, rng.integers(12, size=1500), -1)
        options = options | {"known": known}
    shares = _shares(rng, 1500, count)
    expected = assign_labels(source, **options)
    found = _shared(source, shares, rounding=1e-13, **options)
    np.testing.assert_array_equal(_together(found, shares), expected.labels)
    for each in found:
        np.testing.assert_array_equal(each.potentials, found[0].potentials)
        assert each.marginal_error == pytest.approx(found[0].marginal_error, abs=1e-9)
        assert each.converged == expected.converged


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "scale", "options", "least_equal"),
    [
        ((80_000, 64), 1.0, {}, 0.998),
        # Labels of rows that are nearly alike are hardly determined: another order of the rows changes as many of one worker's.
        ((80_000, 64), 0.02, {}, 0.997),
        ((80_000, 64), 1.0, {"memory_limit": 2**23}, 0.998),
        ((40_000, 256), 3.0, {"size_min": 50, "size_max": 400}, 0.998),
    ],
    ids=str,
)
def test_many_rows_get_nearly_the_labels_of_one_worker(rng, shape, scale, options, least_equal):
    """Starts on a share of the rows, lists of parts and rounded labels of many rows: labels may differ within the gap."""
    source, count = _features(rng, *shape, scale), 2
    shares = _shares(rng, shape[0], count)
    expected = assign_labels(source, **options)
    found = _shared(source, shares, rounding=1e-13, **options)
    labels = _together(found, shares)
    sizes = np.bincount(labels, minlength=shape[1])
    if options.get("size_min"):
        assert sizes.min() >= 50
        assert sizes.max() <= 400
    else:
        assert sizes.max() - sizes.min() <= 1
    assert (labels == expected.labels).mean() > least_equal
    gap = expected.rounding_gap + found[0].rounding_gap
    assert abs(_objective(source, labels) - _objective(source, expected.labels)) <= gap + 1e-6
    assert len({each.num_iterations for each in found}) == 1


def test_workers_whose_potentials_part_go_on_from_those_of_the_first(rng):
    """The start is the solution, so that a single pass ends the solve."""
    log_probs, rows = oracle.log_probs(rng, 600, 8), np.arange(600)
    start = sinkhorn(log_probs).potentials

    def work(shards):
        others = start + 1e-4 * shards.index * np.arange(8)
        return sinkhorn(log_probs[rows % 2 == shards.index], initial_potentials=others, shards=shards)

    first, second = in_threads(2, work)
    assert first.num_iterations == second.num_iterations == 1
    np.testing.assert_array_equal(first.potentials, second.potentials)
    np.testing.assert_allclose(first.potentials, start, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_workers_bad_row_stops_all(rng, value):
    log_probs = oracle.log_probs(rng, 600, 8)
    log_probs[431] = value
    shares = np.split(np.arange(600), [200, 500])
    found = in_threads(3, lambda shards: sinkhorn(log_probs[shares[shards.index]], shards=shards))
    for error in found:
        assert isinstance(error, NotFiniteError)
        assert "row 231" in str(error)
        assert "(counted among the rows of worker 1 of 3)" in str(error)


def test_what_is_wrong_with_all_rows_is_told_by_all_workers(rng):
    log_probs, known = oracle.log_probs(rng, 60, 4), np.zeros(60, np.int64)
    shares = np.split(np.arange(60), [20])
    arguments = [{"known": known}, {"known": known - (np.arange(60) == 59), "size_max": 15}, {"size_min": 16}]
    for options, message in zip(arguments, ["labels for all 60 rows", "labels of cluster 0", "just 60 rows"], strict=True):

        def work(shards, options=options):
            rows = shares[shards.index]
            held = {"known": options["known"][rows]} if "known" in options else {}
            return sinkhorn(log_probs[rows], shards=shards, **options | held)

        for error in in_threads(2, work):
            assert isinstance(error, KnownLabelsError | ValueError)
            assert message in str(error)


@pytest.mark.parametrize("dense", [0, 256])
def test_joins_of_all_workers_are_those_of_one(rng, monkeypatch, dense):
    """As whole matrices, or as the entries that are not zero."""
    monkeypatch.setattr(candidates_module, "_DENSE", dense)
    log_probs, v = oracle.log_probs(rng, 900, 24, spread=3.0), np.zeros(24)

    def joins(source, shards):
        rows = Rows(source, lam=25.0, shards=shards)
        measured, near = rows.measure_and_list(v, 30.0)
        lists = candidates_module.Candidates(near, rows.that_count(measured.log_rows), v, 30.0, shards)
        return lists.joins(lists.evaluate(v).q, 24).toarray()

    expected = joins(log_probs, ALONE)
    assert np.count_nonzero(expected) > 24
    for found in in_threads(2, lambda shards: joins(np.array_split(log_probs, [300])[shards.index], shards)):
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)
