"""The columns of a file of labels, except those for viewers, and the images to look at first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sela_tf.commands.label_blocks import Block
from sela_tf.commands.label_names import LabelNames
from sela_tf.evaluation.urgency import Urgency
from sela_tf.models.heads import MultiHead
from sela_tf.serving.disagreement import HeadDisagreement
from sela_tf.serving.predictions import predictions

_SHOWN = 5


class Labelling(NamedTuple):
    """The heads, potentials and scores that turn outputs of the network into the columns of a file."""

    heads: MultiHead
    """Heads of the network."""
    potentials: np.ndarray | None
    """Potentials [T, K]; None for the network's plain argmax."""
    lam: float
    """Lambda of the transport of the potentials."""
    disagreement: HeadDisagreement
    """Disagreement of the heads."""
    urgency: Urgency
    """Urgency of looking at an image."""
    names: LabelNames | None
    """Names of clusters and images; None where there are none."""
    clusters: np.ndarray | None
    """Balanced clusters [N, T] of the images of all splits; None for the most probable cluster of each image."""
    classes: np.ndarray | None
    """Classes [N] of the images of all splits, numbered alike; None where they are not known."""


def columns_of(block: Block, labelling: Labelling) -> dict[str, np.ndarray]:
    """Returns the columns of the file for a block, except the embedding and those for viewers."""
    heads, clusters = labelling.heads, labelling.clusters
    predicted = predictions(
        heads(block.head_inputs),
        labelling.potentials,
        lam=labelling.lam,
        clusters=None if clusters is None else clusters[block.places],
    )
    images, rows = block.split.images, block.rows
    columns: dict[str, np.ndarray] = {}
    if images.names is not None:
        columns["name"] = np.array(images.names[rows])
    else:
        columns["index"] = images.rows[rows]
    columns["split"] = np.full(len(block.head_inputs), block.split.name)
    if images.classes is not None:
        numbers, names = images.classes[rows], images.class_names
        columns["class"] = numbers if names is None else np.array(names)[numbers]
    for head in range(heads.num_heads):
        suffix = f"_{head}" if heads.num_heads > 1 else ""
        for name, values in predicted._asdict().items():
            columns[name + suffix] = np.asarray(values)[:, head]
        if labelling.names is not None:
            called = labelling.names.column(head, columns[f"cluster{suffix}"], block.split.said, block.start)
            columns[f"cluster_name{suffix}"] = called
    if heads.num_heads > 1:
        columns["disagreement"] = labelling.disagreement.of(np.asarray(predicted.cluster))
    columns["num_changes"] = block.split.num_changes[rows]
    places = np.arange(block.places.start, block.places.stop)
    classes = None if labelling.classes is None else labelling.classes[places]
    columns["look_here_first"] = labelling.urgency.look_here_first(block.embedding, classes, places)
    return columns


def most_urgent_of(before: list[tuple[float, str]], columns: Mapping[str, np.ndarray]) -> list[tuple[float, str]]:
    """Returns the images to look at first, among those of `before` and those of a block, as (score, name)."""
    scores = columns["look_here_first"]
    here = [(float(scores[i]), _name(columns, i)) for i in np.argsort(-scores)[:_SHOWN]]
    return sorted(before + here, key=lambda pair: -pair[0])[:_SHOWN]


def _name(columns: Mapping[str, np.ndarray], i: int) -> str:
    """Returns the name of the i-th image of a block, or its source row and split, for a line of a table."""
    if "index" in columns:
        return f"{columns['index'][i]} ({columns['split'][i]})"
    # The name of a file may contain line breaks, which `repr` escapes.
    return repr(str(columns["name"][i]))[1:-1]
