"""K-means whose clusters have equal sizes, or sizes within bounds: `BalancedKMeans`, an estimator of scikit-learn.

Lloyd's iteration with another assignment step: the labels of least inertia among those with allowed sizes. With c_k the centres,

    sum_i |x_i - c_{label_i}|^2  =  sum_i |x_i|^2  -  sum_i (2 <x_i, c_{label_i}> - |c_{label_i}|^2),

so that the step is the transport without entropy whose "log-probabilities" are 2 <x_i, c_k> - |c_k|^2: the logits of a linear layer on x.
`balanced_labels` solves it from the prices of the step before, which are nearly those of this one.

Reference: P. S. Bradley, K. P. Bennett and A. Demiriz, Constrained k-means clustering, Microsoft Research MSR-TR-2000-65, 2000.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.base import BaseEstimator, ClusterMixin
from sklearn.cluster import kmeans_plusplus
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from sela_tf.clustering.vectors import BLOCK_ENTRIES, Vectors, moments
from sela_tf.transport.linear_logits import ComputedLogits, LinearLogits
from sela_tf.transport.rounding import balanced_labels
from sela_tf.transport.row_sample import move_cost
from sela_tf.transport.sinkhorn import sinkhorn
from sela_tf.transport.size_bounds import SizeBound, check_size_bounds

# Scores are kept in memory up to this many bytes; beyond, they are computed at every reading.
_MOST_STORED = 2**30
# Up to this many scores the transport without entropy is solved alone.
_FEW_ENTRIES = 2**18
# The temperature of the entropic transport that comes first, as a part of what lies between the best cluster and the next in half of the rows.
_TEMPERATURES_PER_MARGIN, _TOLERANCE, _MAX_ITERATIONS = 30.0, 1e-2, 200
# One cluster has an infinite margin, equal centres have none.
_MARGINS = 1e-30, 1e30
# It is left out where no more than this part of the rows would have to leave their cluster.
_FEW_TO_MOVE = 0.01
# K-means++ draws its centres from this many rows, and from at least so many for each cluster.
_START_ROWS, _START_ROWS_PER_CLUSTER = 2**14, 16


class _Step(NamedTuple):
    """The centres and what an assignment to them gave."""

    centers: np.ndarray
    """The centres less the mean of X, float64 [K, D]."""
    labels: np.ndarray
    """The clusters of the rows, int64 [N]."""
    prices: np.ndarray
    """The prices of the clusters' places, float64 [K]: a row pays |x - c_k|^2 - price_k."""
    gap: float
    """An upper bound on the inertia that a better assignment would spare."""
    number: int
    """The number of assignments so far."""


class BalancedKMeans(ClusterMixin, BaseEstimator):
    """K-means with clusters of equal sizes, or of sizes within bounds.

    By default each cluster has floor(N/K) or ceil(N/K) rows. Each assignment is the best for its centres and sizes: the optimum where N * K is
    at most 2**20, and within `assignment_gap_` of it beyond. Memory for N * K distances is taken up to 1 GiB; where they need more they are
    computed anew at each reading. X may be a memory-mapped array, which is read a block at a time.

    `fit` takes no `sample_weight`, because sizes count rows: rows of unequal weights could not fill clusters of equal weight without being
    divided between them.

    Args:
        n_clusters: K, the number of clusters.
        size_min: the smallest number of rows of a cluster, or K such numbers. None with `size_max` sets no smallest number.
        size_max: the largest number of rows of a cluster, or K such numbers. None with `size_min` sets no largest number.
        init: the first centres: "k-means++", on a sample of the rows where there are many; "random" rows; an array [K, D]; or a function of
            (X, n_clusters, random_state) that returns one.
        n_init: the number of runs from different first centres, of which that of least inertia is kept; "auto" for one, and for ten
            where `init` is "random" or a function.
        max_iter: the most assignments of a run.
        tol: the squared movement of all centres, relative to the mean variance of the features, at which a run ends. A run ends anyway
            when labels are those of the assignment before.
        random_state: the seed of the first centres: an integer, a `numpy.random.RandomState`, or None.

    Attributes:
        cluster_centers_: the centres, [K, D], in the dtype of X.
        labels_: the cluster of each row, int64 [N].
        prices_: the prices of the clusters' places, float64 [K], which `predict` subtracts from squared distances.
        assignment_gap_: an upper bound on the inertia that labels of allowed sizes with the same centres could spare.
        inertia_: the sum of squared distances of the rows from their centres.
        n_iter_: the number of assignments of the run that was kept.
        n_features_in_: D.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        *,
        size_min: SizeBound = None,
        size_max: SizeBound = None,
        init: str | np.ndarray | Callable[..., np.ndarray] = "k-means++",
        n_init: int | str = "auto",
        max_iter: int = 100,
        tol: float = 1e-4,
        random_state: int | np.random.RandomState | None = None,
    ):
        self.n_clusters = n_clusters
        self.size_min = size_min
        self.size_max = size_max
        self.init = init
        self.n_init = n_init
        self.max_iter = max_iter
        self.tol = tol
        self.random_state = random_state

    def fit(self, X: np.ndarray, y: None = None) -> BalancedKMeans:
        """Finds the clusters of the rows of X, [N, D]; `y` is ignored.

        Raises:
            ValueError: X is not a matrix of finite numbers with at least K rows, a parameter is out of range, or no sizes are within
                the bounds.
        """
        X = _validated(self, X, reset=True)
        self._check_parameters(len(X))
        mean, spread = moments(X)
        vectors, random = Vectors(X, mean), check_random_state(self.random_state)
        ends: list[tuple[float, int, _Step]] = []
        for _ in range(self._num_runs()):
            end = self._run(vectors, self._first_centers(X, random) - mean, self.tol * spread)
            ends.append((_inertia(vectors, end), len(ends), end))
        self.inertia_, _, best = min(ends)
        self.cluster_centers_ = (best.centers + mean).astype(X.dtype)
        self.labels_, self.prices_, self.assignment_gap_ = best.labels, best.prices, best.gap
        self.n_iter_, self._mean = best.number, mean
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Returns the cluster of each row of X, int64 [N], by its squared distances less the clusters' prices.

        Each row is looked at by itself, so that clusters of new rows may have any sizes, and a row that was fitted may get another cluster than in
        `labels_`, because prices leave some rows undecided.
        """
        check_is_fitted(self)
        X = _validated(self, X, reset=False)
        vectors = Vectors(X, self._mean)
        kernel, bias = _layer(self.cluster_centers_ - self._mean, X.dtype)
        found = np.empty(len(X), np.int64)
        for rows, block in vectors.blocks(len(bias)):
            found[rows] = np.argmax(block @ kernel + (bias + self.prices_), axis=1)
        return found

    def _check_parameters(self, num_rows: int) -> None:
        """Checks the parameters that no later step does.

        Raises:
            ValueError: one is out of range; the message names it.
        """

        def is_count(value: Any) -> bool:
            return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= 1)

        for name, value, valid, bound in (
            ("n_clusters", self.n_clusters, is_count(self.n_clusters), "a positive integer"),
            ("n_init", self.n_init, is_count(self.n_init) or self.n_init == "auto", "a positive integer or 'auto'"),
            ("max_iter", self.max_iter, is_count(self.max_iter), "a positive integer"),
            (
                "tol",
                self.tol,
                isinstance(self.tol, int | float | np.floating) and 0 <= self.tol < np.inf,
                "a number that is not negative",
            ),
        ):
            if not valid:
                raise ValueError(f"`{name}` must be {bound}. Received: {name}={value!r}")
        if num_rows < self.n_clusters:
            raise ValueError(f"X has n_samples={num_rows} rows, which are fewer than n_clusters={self.n_clusters}")

    def _num_runs(self) -> int:
        """Returns the number of runs."""
        if not isinstance(self.init, str) and not callable(self.init):
            return 1
        if self.n_init != "auto":
            return int(self.n_init)
        return 1 if self.init == "k-means++" else 10

    def _first_centers(self, X: np.ndarray, random: np.random.RandomState) -> np.ndarray:
        """Returns the first centres, float64 [K, D].

        Raises:
            ValueError: `init` is not as described.
        """
        num_clusters = int(self.n_clusters)
        if isinstance(self.init, str):
            if self.init == "random":
                return X[np.sort(random.permutation(len(X))[:num_clusters])].astype(np.float64)
            if self.init != "k-means++":
                raise ValueError(f"`init` must be 'k-means++', 'random', an array or a function. Received: init={self.init!r}")
            count = max(_START_ROWS, _START_ROWS_PER_CLUSTER * num_clusters)
            some = X if len(X) <= count else X[np.sort(random.choice(len(X), count, replace=False))]
            return kmeans_plusplus(np.asarray(some), num_clusters, random_state=random)[0].astype(np.float64)
        given = self.init(X, num_clusters, random) if callable(self.init) else self.init
        centers = np.asarray(given, np.float64)
        if centers.shape != (num_clusters, X.shape[1]) or not np.isfinite(centers).all():
            raise ValueError(f"`init` must give finite centres [{num_clusters}, {X.shape[1]}]. Received: shape {centers.shape}")
        return centers

    def _run(self, vectors: Vectors, centers: np.ndarray, tolerance: float) -> _Step:
        """Assigns and moves centres in turn, until they rest; returns the last assignment with its centres.

        Args:
            vectors: the rows.
            centers: float64 [K, D], the first centres.
            tolerance: the squared movement of all centres at which to end.
        """
        step = self._assigned(vectors, centers, None)
        while step.number < self.max_iter:
            last, centers = step, _centers(vectors, step)
            moved = float(((centers - last.centers) ** 2).sum())
            if moved == 0:
                break
            step = self._assigned(vectors, centers, last)
            if moved <= tolerance or (step.labels == last.labels).all():
                break
        return step

    def _assigned(self, vectors: Vectors, centers: np.ndarray, last: _Step | None) -> _Step:
        """Returns the best assignment to these centres."""
        kernel, bias = _layer(centers, vectors.dtype)
        layer = LinearLogits(vectors, kernel, bias)
        scores: np.ndarray | LinearLogits = layer
        matrix: np.ndarray | ComputedLogits = ComputedLogits(layer)
        if kernel.itemsize * len(vectors) * len(bias) <= _MOST_STORED:
            scores = matrix = np.empty(matrix.shape, kernel.dtype)
            for rows, block in vectors.blocks(len(bias)):
                np.add(block @ kernel, bias, out=matrix[rows])
        prices = np.zeros(len(bias)) if last is None else last.prices
        lower, upper = _limits(self.size_min, self.size_max, *matrix.shape)
        sizes = np.bincount(_labels(matrix, prices), minlength=len(prices))
        to_move = max(np.maximum(sizes - upper, 0).sum(), np.maximum(lower - sizes, 0).sum())
        lam = _TEMPERATURES_PER_MARGIN / np.clip(move_cost(matrix, np.zeros(len(prices)), 0.5), *_MARGINS)
        if matrix.size > _FEW_ENTRIES and to_move > _FEW_TO_MOVE * len(vectors):
            start = {"initial_potentials": prices * lam, "tolerance": _TOLERANCE, "max_iterations": _MAX_ITERATIONS}
            prices = sinkhorn(scores, lam=lam, size_min=lower, size_max=upper, **start).potentials / lam
        found = balanced_labels(scores, prices * lam, lam=lam, size_min=lower, size_max=upper)
        number = 1 if last is None else last.number + 1
        return _Step(centers, found.labels, found.prices, found.rounding_gap * len(vectors), number)


def _limits(size_min: SizeBound, size_max: SizeBound, num_rows: int, num_clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the clusters' smallest and largest sizes, int64 [K] each: by default floor(N/K) and ceil(N/K)."""
    if size_min is None and size_max is None:
        size_min, size_max = num_rows // num_clusters, -(-num_rows // num_clusters)
    return check_size_bounds(size_min, size_max, num_rows, num_clusters)


def _labels(scores: np.ndarray | ComputedLogits, prices: np.ndarray) -> np.ndarray:
    """Returns argmax_k (score_ik + price_k) of each row, int64 [N]."""
    labels, count = np.empty(len(scores), np.int64), max(1, BLOCK_ENTRIES // len(prices))
    prices = prices.astype(scores.dtype)
    for start in range(0, len(scores), count):
        rows = slice(start, start + count)
        labels[rows] = np.argmax(scores[rows] + prices, axis=1)
    return labels


def _layer(centers: np.ndarray, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Returns the kernel [D, K] and the bias [K] of the linear layer that gives the scores 2 <x, c> - |c|^2."""
    return (2 * centers.T).astype(dtype), (-(centers**2).sum(axis=1)).astype(dtype)


def _validated(estimator: BalancedKMeans, X: Any, *, reset: bool) -> np.ndarray:
    """Returns X as an array [N, D] of float32 or float64, as scikit-learn checks it."""
    options = {"dtype": [np.float64, np.float32], "reset": reset}
    try:
        from sklearn.utils.validation import validate_data
    except ImportError:  # scikit-learn before 1.6
        return estimator._validate_data(X, **options)
    return validate_data(estimator, X, **options)


def _centers(vectors: Vectors, step: _Step) -> np.ndarray:
    """Returns the mean of each cluster's rows, float64 [K, D]; a cluster without rows keeps its centre."""
    num_clusters = len(step.centers)
    sums, sizes = np.zeros_like(step.centers), np.bincount(step.labels, minlength=num_clusters)
    for rows, block in vectors.blocks(1):
        labels = step.labels[rows]
        members = csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels)))), shape=(num_clusters, len(labels)))
        sums += members @ block
    return np.where(sizes[:, np.newaxis] > 0, sums / np.maximum(sizes, 1)[:, np.newaxis], step.centers)


def _inertia(vectors: Vectors, step: _Step) -> float:
    """Returns the sum of squared distances of the rows from their centres."""
    return sum(float(((block - step.centers[step.labels[rows]]) ** 2).sum()) for rows, block in vectors.blocks(1))
