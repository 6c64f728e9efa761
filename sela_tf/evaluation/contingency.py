"""Contingency tables of two labellings of the same images, and measures of their agreement on resamples of the images."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import entr
from sklearn.metrics import adjusted_mutual_info_score

from sela_tf.evaluation.bootstrap import resamples


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
        self._rows, self._columns = np.divmod(codes, len(columns))
        self._by_column = np.argsort(self._columns, kind="stable")
        self._row_starts = np.searchsorted(self._rows, np.arange(len(rows)))
        self._column_starts = np.searchsorted(self._columns[self._by_column], np.arange(len(columns)))
        self._counts = np.bincount(cell.reshape(-1), minlength=len(codes))[np.newaxis]
        self.num_images = len(first)
        drawn = (np.bincount(cell.reshape(-1), times, minlength=len(codes)) for times in resamples(self.num_images, seed=seed))
        self.cells = np.stack(list(drawn))
        """Counts of the cells, float64 [R, cells]."""

    def ami(self, value: float) -> np.ndarray:
        """Returns the adjusted mutual information, [R]; `value` is that of all images.

        The mutual information that is expected by chance is that of all images: it depends on the sizes of rows and columns alone, which
        change little, and takes long to compute.
        """
        information, first, second = self._information(self._counts)
        mean = (first[0] + second[0]) / 2
        by_chance = 0.0 if value >= 1 else (information[0] - value * mean) / (1 - value)
        information, first, second = self._information(self.cells)
        return (information - by_chance) / np.maximum((first + second) / 2 - by_chance, 1e-12)

    def nmi(self) -> np.ndarray:
        """Returns the normalised mutual information, [R]."""
        information, first, second = self._information(self.cells)
        return information / np.maximum((first + second) / 2, 1e-12)

    def ari(self) -> np.ndarray:
        """Returns the adjusted Rand index, [R]."""
        together, rows, columns = (
            (counts * (counts - 1)).sum(axis=1) / 2 for counts in (self.cells, self._row_sums(self.cells), self._sizes(self.cells))
        )
        by_chance = rows * columns / (self.num_images * (self.num_images - 1) / 2)
        return (together - by_chance) / np.maximum((rows + columns) / 2 - by_chance, 1e-12)

    def hungarian(self) -> np.ndarray:
        """Returns the accuracy under the one-to-one matching of rows and columns that is the best one for all images, [R]."""
        table = np.zeros((len(self._row_starts), len(self._column_starts)))
        table[self._rows, self._columns] = self._counts[0]
        matched = np.zeros(table.shape, bool)
        matched[linear_sum_assignment(table, maximize=True)] = True
        return self.cells[:, matched[self._rows, self._columns]].sum(axis=1) / self.num_images

    def purity(self) -> np.ndarray:
        """Returns the share of a column's most frequent row, mean over the columns in use, [R]."""
        sizes = self._sizes(self.cells)
        largest = np.maximum.reduceat(self.cells[:, self._by_column], self._column_starts, axis=1)
        return (largest / np.maximum(sizes, 1)).sum(axis=1) / (sizes > 0).sum(axis=1)

    def entropy(self) -> np.ndarray:
        """Returns the entropy of the rows in a column in nats, mean over the columns in use, [R]."""
        sizes = self._sizes(self.cells)
        shares = self.cells / np.maximum(sizes, 1)[:, self._columns]
        entropies = np.add.reduceat(entr(shares)[:, self._by_column], self._column_starts, axis=1)
        return entropies.sum(axis=1) / (sizes > 0).sum(axis=1)

    def _row_sums(self, cells: np.ndarray) -> np.ndarray:
        return np.add.reduceat(cells, self._row_starts, axis=1)

    def _sizes(self, cells: np.ndarray) -> np.ndarray:
        """Returns the sizes of the columns, [R, columns]."""
        return np.add.reduceat(cells[:, self._by_column], self._column_starts, axis=1)

    def _information(self, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the mutual information and the entropies of rows and columns in nats, each [R]."""
        first, second, joint = (
            entr(counts / self.num_images).sum(axis=1) for counts in (self._row_sums(cells), self._sizes(cells), cells)
        )
        return first + second - joint, first, second
