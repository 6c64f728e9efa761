"""The faults that are among the first entries shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import rankdata

from benchmarks.planted_faults.planting import NUM_FAULTS, Fault

SHOWN = 100


def found(entries: Sequence[Sequence[int]], faults: Sequence[Fault]) -> dict[str, int]:
    """Returns how many faults of each kind the first entries show: the image at fault; of a duplicate both images in one entry."""
    together = [set(entry) for entry in entries[:SHOWN]]
    hits = dict.fromkeys(NUM_FAULTS, 0)
    for fault in faults:
        wanted = {fault.image, fault.of} if fault.kind == "duplicate" else {fault.image}
        hits[fault.kind] += any(wanted <= entry for entry in together)
    return hits


def natural_copies(entries: Sequence[Sequence[int]], faults: Sequence[Fault], pixels: np.ndarray) -> list[bool]:
    """Returns of each entry whether it holds images with the same pixels and nothing planted."""
    planted = {fault.image for fault in faults}
    return [not planted & set(entry) and len({pixels[row].tobytes() for row in entry}) < len(entry) for entry in entries]


def ordered_pairs(scores: np.ndarray, faults: Sequence[Fault]) -> dict[str, float]:
    """Returns the share of pairs of a faulty and a faultless image in which the faulty one has the higher score, ties counted half.

    Copies are left out: their originals are as faulty as they are.
    """
    faultless = np.ones(len(scores), bool)
    faultless[[row for fault in faults for row in (fault.image, fault.of) if row >= 0]] = False
    shares: dict[str, float] = {}
    for kind in ("class", "foreign"):
        faulty = scores[[fault.image for fault in faults if fault.kind == kind]]
        ranks = rankdata(np.concatenate([faulty, scores[faultless]]))[: len(faulty)]
        shares[kind] = float((ranks.sum() - len(faulty) * (len(faulty) + 1) / 2) / (len(faulty) * faultless.sum()))
    return shares


def as_faults(rows: list[dict[str, Any]]) -> list[Fault]:
    """Returns faults from what a JSON file holds of them."""
    return [Fault(**row) for row in rows]
