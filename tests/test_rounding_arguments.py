"""Exactly balanced labels at the limits of their arguments, and the arguments that are refused."""

from __future__ import annotations

import numpy as np
import oracle
import pytest

from sela_tf.transport import scan
from sela_tf.transport.rounding import balanced_labels


def test_clusters_and_rows_may_be_permuted(rng):
    log_probs = oracle.log_probs(rng, 500, 8)
    potentials, order, rows = 25.0 * rng.normal(size=8), rng.permutation(8), rng.permutation(500)
    expected = balanced_labels(log_probs, potentials, lam=25.0)
    result = balanced_labels(log_probs[rows][:, order], potentials[order], lam=25.0)
    np.testing.assert_array_equal(order[result.labels], expected.labels[rows])


def test_few_rows_and_one_cluster():
    assert balanced_labels(np.zeros((5, 1), np.float32), np.zeros(1), lam=1.0).labels.tolist() == [0] * 5
    result = balanced_labels(-np.eye(2, 7, dtype=np.float32), np.zeros(7), lam=1.0)
    assert sorted(result.sizes) == [0] * 5 + [1] * 2
    assert result.labels[0] != 0
    assert result.labels[1] != 1


def test_known_labels_count(rng):
    log_probs = oracle.log_probs(rng, 90, 4)
    known = np.full(90, -1)
    known[:23] = 3  # This fills the cluster, at ceil(90 / 4).
    result = balanced_labels(log_probs, np.zeros(4), lam=25.0, known=known)
    assert result.sizes[3] == 23
    assert (result.labels[:23] == 3).all()
    assert (result.labels[23:] != 3).all()
    everything = balanced_labels(log_probs, np.zeros(4), lam=25.0, known=result.labels)
    np.testing.assert_array_equal(everything.labels, result.labels)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"log_probs": oracle.zeros_but(np.nan, (4, 1))}, "nan at row 4, column 1"),
        ({"log_probs": oracle.zeros_but(np.inf, (2, 0))}, "inf at row 2, column 0"),
        ({"log_probs": oracle.zeros_but(-np.inf, (3, slice(None)))}, "1 of 6 rows cannot be placed"),
        ({"log_probs": oracle.zeros_but(-np.inf, (slice(None), 2))}, "2 of 6 rows cannot be placed"),
        ({"log_probs": oracle.zeros_but(-np.inf, (slice(0, 5), slice(1, 3)))}, "3 of 6 rows cannot be placed"),
        ({"log_probs": np.full((6, 3), 1.7e308), "potentials": [1e308, -1e308, -1e308], "lam": 1.0}, "overflow"),
        ({"potentials": [1.0, 0.0, 0.0], "lam": 1e-320}, "`potentials`.*1e-320"),
        ({"log_probs": np.zeros((0, 3), np.float32)}, r"shape \(0, 3\)"),
        ({"log_probs": np.zeros(3, np.float32)}, r"shape \(3,\)"),
        ({"log_probs": np.zeros((6, 3), np.int64)}, "dtype=int64"),
        ({"potentials": [0.0, 0.0]}, r"`potentials` must be 3 finite.*shape \(2,\)"),
        ({"potentials": [0.0, np.nan, 0.0]}, "`potentials`.*nan"),
        ({"lam": 0.0}, "lam=0.0"),
        ({"lam": float("nan")}, "lam=nan"),
        ({"lam": float("inf")}, "lam=inf"),
        ({"sizes": [2, 2, 3]}, "`sizes`.*sum 6.*sum 7"),
        ({"sizes": [7, 0, -1]}, "`sizes`.*-1"),
        ({"sizes": [3, 3]}, r"`sizes`.*shape \(2,\)"),
        ({"sizes": [2.0, 2.0, 2.0]}, "`sizes`.*float64"),
        ({"known": [0] * 5}, r"`known`.*shape \(5,\)"),
        ({"known": [0.0] * 6}, "`known`.*float64"),
        ({"known": [0, 1, 2, 3, -1, -1]}, "`known`.*-1 to 3"),
        ({"known": [0, 1, 2, -2, -1, -1]}, "`known`.*-2 to 2"),
        ({"known": [1, 1, 1, -1, -1, -1]}, "`known`.*3 labels of cluster 1, which has 2 places"),
        ({"known": [0, 0, 1, -1, -1, -1], "sizes": [1, 1, 4]}, "`known`.*2 labels of cluster 0, which has 1 places"),
        (
            {"log_probs": np.zeros((7, 3), np.float32), "known": [0, 0, 0, 1, 1, 1, -1]},
            "`known` must leave enough rows for the other clusters' smallest sizes.*1 rows more .* than the 7 .* because 2 clusters have more",
        ),
    ],
)
def test_refuses_by_name(arguments, message):
    defaults = {"log_probs": np.zeros((6, 3), np.float32), "potentials": np.zeros(3), "lam": 25.0}
    arguments = {key: np.asarray(value) if isinstance(value, list) else value for key, value in (defaults | arguments).items()}
    with pytest.raises(ValueError, match=message):
        balanced_labels(arguments.pop("log_probs"), arguments.pop("potentials"), **arguments)


def test_few_candidates_of_massive_ties_are_kept():
    """Two of each row's 64 equal candidates are kept, which makes ties as fast as other problems."""
    free = np.full(4096, -1)
    scanned = scan.scan(
        np.zeros((4096, 64), np.float32), np.zeros(64), 1.0, 0.0, free, free.copy(), 4.0, np.float32, np.random.default_rng(0)
    )
    assert not scanned.complete
    assert scanned.counts.sum() == len(scanned.column) <= 4 * 4096
    assert len(np.unique(scanned.column)) == 64
