"""Names of clusters against class labels of single images: `python -m benchmarks.naming RUN … [--output=FILE.md]`.

For finished runs on images with classes, and C from 1 to 128. *Names*: the clusters of head 0 are cut into C groups by the tree of
report.html, and each group gets the name of the most frequent class of its training images, as someone would who looked at them. A held-out
image has the name of the cluster that it is predicted to be in. *Labels*: a logistic regression on the same embedding, standardised, is fitted
to C training images drawn at random with their classes; the mean and standard deviation of twenty draws. Both cost C looks, of a strip of images
and of an image. The accuracy is that on the held-out images.
"""

from __future__ import annotations

import argparse
import pathlib
import warnings
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from sela_tf.evaluation.outputs import network_outputs
from sela_tf.reporting.markdown import markdown
from sela_tf.reporting.page.clusters import merge_tree
from sela_tf.runs.flagfile import read_config
from sela_tf.runs.labels import read_labels
from sela_tf.runs.network import load_run, read_description
from sela_tf.training.images import load_data

COUNTS = (1, 2, 4, 8, 16, 32, 64, 128)
DRAWS = 20


def groups_of(merges: np.ndarray, clusters: np.ndarray, num_clusters: int, count: int) -> np.ndarray:
    """The group of each cluster [K], from its merge tree cut into `count` groups; -1 for clusters without members."""
    found = np.full(num_clusters, -1)
    parts = {int(k): [int(k)] for k in np.unique(clusters)}
    for i, (a, b) in enumerate(merges[: max(0, len(parts) - count)].tolist()):
        parts[num_clusters + i] = parts.pop(a) + parts.pop(b)
    for number, members in enumerate(parts.values()):
        found[members] = number
    return found


def by_names(groups: np.ndarray, clusters: np.ndarray, classes: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """The class of each of the clusters `queries` [M], when each group has the name of its most frequent class; -1 without a name."""
    number = groups.max() + 1
    votes = np.zeros((number, classes.max() + 1), np.int64)
    np.add.at(votes, (groups[clusters], classes), 1)
    asked = groups[queries]
    return np.where(asked < 0, -1, votes.argmax(axis=1)[asked])


def by_labels(embedding: np.ndarray, classes: np.ndarray, queries: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The class of each of the queries [M, D] by a logistic regression that knows the classes of the images `chosen`."""
    if len(np.unique(classes[chosen])) < 2:
        return np.full(len(queries), classes[chosen[0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return LogisticRegression(max_iter=200).fit(embedding[chosen], classes[chosen]).predict(queries)


def rows_of(workdir: pathlib.Path) -> list[dict[str, Any]]:
    config, description, model = read_config(workdir), read_description(workdir), load_run(workdir)
    data = load_data(config, description.pixel_rules)
    arrays = read_labels(workdir, (description.num_heads, description.num_clusters))
    transport = {"potentials": arrays["potentials"], "lam": float(arrays["lam"])}
    train, held_out = (network_outputs(model, images, size=data.size, **transport) for images in (data.train, data.held_out))
    clusters, classes, wanted = arrays["labels"][0], data.train.classes, data.held_out.classes
    assert classes is not None
    merges = merge_tree(train.embedding, clusters, description.num_clusters)
    scaler = StandardScaler().fit(train.embedding)
    known, queries = scaler.transform(train.embedding), scaler.transform(held_out.embedding)
    rows = []
    for count in (each for each in COUNTS if each <= len(np.unique(clusters))):
        groups = groups_of(merges, clusters, description.num_clusters, count)
        names = (by_names(groups, clusters, classes, held_out.corrected[0]) == wanted).mean()
        random = np.random.default_rng(count)
        labels = [
            (by_labels(known, classes, queries, random.permutation(len(classes))[:count]) == wanted).mean() for _ in range(DRAWS)
        ]
        rows.append({"count": count, "names": names, "labels": np.mean(labels), "spread": np.std(labels)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path)
    options = parser.parse_args()
    header = ["run", "C", "C groups named", "C labels", "±"]
    table = [
        [run.name, row["count"], f"{row['names']:.3f}", f"{row['labels']:.3f}", f"{row['spread']:.3f}"]
        for run in options.runs
        for row in rows_of(run)
    ]
    text = markdown(header, [[str(cell) for cell in row] for row in table])
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
