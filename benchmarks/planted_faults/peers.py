"""The images that cleanlab and cleanvision would show first: `python benchmarks/planted_faults/peers.py IMAGES.npz ENTRIES.json`.

They live in an environment of their own: `pip install "cleanlab[datalab]" cleanvision scikit-learn pillow`. Neither puts its kinds of issues into one
order, so that these take turns here, each by its own score. A set of duplicates is one entry.
"""

from __future__ import annotations

import json
import pathlib
import sys
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from cleanlab import Datalab
from cleanvision import Imagelab
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

_SHOWN = 100
_MOST = 0.5
"""An issue of cleanvision that more than this share of the images have is no fault of theirs (gray images in a gray set)."""


def in_turn(queues: Iterable[Iterable[Sequence[int]]]) -> list[list[int]]:
    """Returns the first entries of all queues, which take turns; what was shown is not shown again."""
    found: list[list[int]] = []
    seen: set[int] = set()
    waiting = [iter(queue) for queue in queues]
    while waiting and len(found) < _SHOWN:
        for queue in list(waiting):
            entry = next((list(map(int, each)) for each in queue if not {*map(int, each)} <= seen), None)
            if entry is None:
                waiting.remove(queue)
            elif len(found) < _SHOWN:
                found.append(entry)
                seen.update(entry)
    return found


def cleanlab_entries(embedding: np.ndarray, classes: np.ndarray) -> list[list[int]]:
    """Returns what Datalab finds: label issues, outliers and near-duplicates, by its scores.

    The label issues are those of a logistic regression on the embedding, as cleanlab's tutorials have it, over five folds; classes with fewer
    images than folds are left out of the regression's folds by merging.
    """
    fewest = np.bincount(classes)
    folds = StratifiedKFold(max(2, min(5, int(fewest[fewest > 0].min()))), shuffle=True, random_state=0)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    probabilities = cross_val_predict(classifier, embedding, classes, cv=folds, method="predict_proba")
    lab = Datalab({"label": classes}, label_name="label", task="classification")
    lab.find_issues(features=embedding, pred_probs=probabilities, issue_types={"label": {}, "outlier": {}, "near_duplicate": {}})
    queues: list[Iterable[Sequence[int]]] = []
    for kind in ("label", "outlier"):
        queues.append([[row] for row in np.argsort(lab.get_issues(kind)[f"{kind}_score"].to_numpy(), kind="stable")])
    near = lab.get_issues("near_duplicate")
    order = np.argsort(near["near_duplicate_score"].to_numpy(), kind="stable")
    sets = near["near_duplicate_sets"].to_list()
    queues.append([[int(row), *map(int, sets[row])] for row in order if len(sets[row])])
    return in_turn(queues)


def cleanvision_entries(pixels: np.ndarray) -> list[list[int]]:
    """Returns what Imagelab finds: exact and near-duplicates, then the images of each other issue by its score."""
    with tempfile.TemporaryDirectory() as directory:
        paths = [pathlib.Path(directory) / f"{row:06}.png" for row in range(len(pixels))]
        for path, image in zip(paths, pixels, strict=True):
            Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(path)
        lab = Imagelab(filepaths=[str(path) for path in paths])
        lab.find_issues(n_jobs=1)
    queues: list[Iterable[Sequence[int]]] = []
    for kind in ("exact_duplicates", "near_duplicates"):
        sets: list[Any] = lab.info[kind]["sets"]
        queues.append([sorted(int(pathlib.Path(path).stem) for path in each) for each in sets])
    rows = np.array([int(pathlib.Path(path).stem) for path in lab.issues.index])
    for column in lab.issues.columns:
        kind = column.removeprefix("is_").removesuffix("_issue")
        is_issue = lab.issues[column].to_numpy() if column.startswith("is_") else None
        if is_issue is None or "duplicates" in kind or not 0 < is_issue.mean() <= _MOST:
            continue
        flagged = lab.issues[f"{kind}_score"].to_numpy()[is_issue]
        queues.append([[row] for row in rows[is_issue][np.argsort(flagged, kind="stable")]])
    return in_turn(queues)


if __name__ == "__main__":
    with np.load(sys.argv[1]) as file:
        pixels, classes, embedding = (file[name] for name in ("pixels", "classes", "embedding"))
    entries = {"cleanlab": cleanlab_entries(embedding, classes), "cleanvision": cleanvision_entries(pixels)}
    pathlib.Path(sys.argv[2]).write_text(json.dumps(entries))
