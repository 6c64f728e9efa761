"""Contingency tables of two labellings of the same images, and measures of their agreement on resamples of the images."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import entr
from sklearn.metrics import adjusted_mutual_info_score

from sela_tf.evaluation.bootstrap import resamples

MEASURES = ("nmi", "ami", "ari", "hungarian", "purity", "entropy")
"""Measures of `ClusterMetrics` that are known on resamples."""
_COUNTS_AT_ONCE = 2**21
_TINY = 1e-12


def chance_corrected_agreement(first: np.ndarray, second: np.ndarray) -> float:
    """Returns the adjusted mutual information of two clusterings, integers [N]: 1 for the same, 0 for independent ones.

    A single cluster agrees with nothing, also not with itself: it is the collapse of a clustering, for which scikit-learn gives 1.
    """
    if min(len(np.unique(first)), len(np.unique(second))) < 2:
        return 0.0
    return float(adjusted_mutual_info_score(first, second))


class ResampledTables:
    """Contingency tables of two labellings on resamples of their images, with only the cells that are not empty.

    Args:
        first: the rows of the table, such as classes: integers [N].
        second: the columns of the table, such as clusters: integers [N].
        seed: seed of the resamples.
    """

    def __init__(self, first: np.ndarray, second: np.ndarray, *, seed: int):
        rows, first = np.unique(first, return_inverse=True)
        columns, second = np.unique(second, return_inverse=True)
        codes, cell = np.unique(first.reshape(-1) * len(columns) + second.reshape(-1), return_inverse=True)
        self._cell = cell.reshape(-1)
        self._rows, self._columns = np.divmod(codes, len(columns))
        self._by_column = np.argsort(self._columns, kind="stable")
        self._row_starts = np.searchsorted(self._rows, np.arange(len(rows)))
        self._column_starts = np.searchsorted(self._columns[self._by_column], np.arange(len(columns)))
        self._counts = np.bincount(self._cell, minlength=len(codes)).astype(np.float64)[np.newaxis]
        self._num_images, self._seed = len(self._cell), seed

    def agreement(self, *names: str, ami: float = 0.0) -> dict[str, np.ndarray]:
        """Returns measures of the agreement of rows and columns on each resample, float64 [R] by name.

        Args:
            names: names of MEASURES.
            ami: the adjusted mutual information of all images, which "ami" needs. The mutual information that is expected by chance is
                taken from it: it depends on the sizes of rows and columns alone, which change little, and takes long to compute.
        """
        measures: dict[str, Callable[[np.ndarray], np.ndarray]] = {
            "nmi": self._nmi,
            "ami": functools.partial(self._ami, by_chance=self._by_chance(ami)),
            "ari": self._ari,
            "hungarian": self._hungarian,
            "purity": self._purity,
            "entropy": self._entropy,
        }
        found = [{name: measures[name](cells) for name in names} for cells in self._blocks()]
        return {name: np.concatenate([each[name] for each in found]) for name in names}

    def _blocks(self) -> Iterator[np.ndarray]:
        """Yields the counts of the cells on some resamples, float64 [r, cells], a few million at a time."""
        tables = (
            np.bincount(self._cell, times, minlength=len(self._rows)) for times in resamples(self._num_images, seed=self._seed)
        )
        while block := list(itertools.islice(tables, max(1, _COUNTS_AT_ONCE // len(self._rows)))):
            yield np.stack(block)

    def _by_chance(self, ami: float) -> float:
        """Returns the mutual information that is expected by chance, in nats."""
        information, first, second = self._information(self._counts)
        return 0.0 if ami >= 1 else float(information[0] - ami * (first[0] + second[0]) / 2) / (1 - ami)

    @functools.cached_property
    def _matched(self) -> np.ndarray:
        """Returns the cells of the one-to-one matching of rows and columns that is the best one for all images, bool [cells]."""
        table = np.zeros((len(self._row_starts), len(self._column_starts)))
        table[self._rows, self._columns] = self._counts[0]
        matched = np.zeros(table.shape, bool)
        matched[linear_sum_assignment(table, maximize=True)] = True
        return matched[self._rows, self._columns]

    def _nmi(self, cells: np.ndarray) -> np.ndarray:
        information, first, second = self._information(cells)
        return information / np.maximum((first + second) / 2, _TINY)

    def _ami(self, cells: np.ndarray, by_chance: float) -> np.ndarray:
        information, first, second = self._information(cells)
        return (information - by_chance) / np.maximum((first + second) / 2 - by_chance, _TINY)

    def _ari(self, cells: np.ndarray) -> np.ndarray:
        together, rows, columns = (
            (counts * (counts - 1)).sum(axis=1) / 2 for counts in (cells, self._row_sums(cells), self._column_sums(cells))
        )
        by_chance = rows * columns / (self._num_images * (self._num_images - 1) / 2)
        return (together - by_chance) / np.maximum((rows + columns) / 2 - by_chance, _TINY)

    def _hungarian(self, cells: np.ndarray) -> np.ndarray:
        return cells[:, self._matched].sum(axis=1) / self._num_images

    def _purity(self, cells: np.ndarray) -> np.ndarray:
        sizes = self._column_sums(cells)
        largest = np.maximum.reduceat(cells[:, self._by_column], self._column_starts, axis=1)
        return (largest / np.maximum(sizes, 1)).sum(axis=1) / (sizes > 0).sum(axis=1)

    def _entropy(self, cells: np.ndarray) -> np.ndarray:
        sizes = self._column_sums(cells)
        shares = cells / np.maximum(sizes, 1)[:, self._columns]
        return self._column_sums(entr(shares)).sum(axis=1) / (sizes > 0).sum(axis=1)

    def _row_sums(self, values: np.ndarray) -> np.ndarray:
        """Returns the sums over the cells of each row, [r, rows]."""
        return np.add.reduceat(values, self._row_starts, axis=1)

    def _column_sums(self, values: np.ndarray) -> np.ndarray:
        """Returns the sums over the cells of each column, [r, columns]."""
        return np.add.reduceat(values[:, self._by_column], self._column_starts, axis=1)

    def _information(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the mutual information and the entropies of rows and columns in nats, each [r]."""
        first, second, joint = (
            entr(counts / self._num_images).sum(axis=1) for counts in (self._row_sums(cells), self._column_sums(cells), cells)
        )
        return first + second - joint, first, second
