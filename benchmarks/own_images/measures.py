"""The measures that need no classes, beside the figures that do: do they follow them?"""

from __future__ import annotations

import itertools

import keras
import numpy as np
from scipy.stats import spearmanr

from benchmarks.own_images.jobs import Row
from benchmarks.own_images.judging import Features
from sela_tf.evaluation.outputs import NetworkPasses, Passes, evaluation_batches
from sela_tf.evaluation.protocol import evaluation_images, small_samples
from sela_tf.evaluation.raw_pixels import RawPixels
from sela_tf.evaluation.stability import measure_stability, view_pairs
from sela_tf.evaluation.without_classes import JUDGED_BY
from sela_tf.reporting.markdown import markdown
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import Data, augmentation

_FIGURES = ("knn", "linear", "ami")


def measures_of(config: SelaConfig, data: Data, features: Features, model: keras.Model | None) -> dict[str, float]:
    """Returns the measures that `verdict` rests on, as an evaluation of the library takes them.

    Args:
        config: The settings of the run.
        data: The images.
        features: The features of the clean views.
        model: The network that they are of; None for raw pixels.
    """
    images = evaluation_images(data.train, data.held_out, data.size)
    samples, batches = small_samples(images, seed=config.seed), evaluation_batches(images)
    passes: Passes
    if model is None:
        passes = raw = RawPixels(
            batches.training, batches.num_training, rows=samples.training, num_clusters=config.num_clusters, seed=config.seed
        )
        bank = raw.training.embedding
    else:
        passes, bank = NetworkPasses(model), features.training
    shown = data.held_out if samples.held_out is None else data.held_out.take(samples.held_out)
    views = view_pairs(shown, size=data.size, augmentation=augmentation(config), seed=config.seed)
    found = measure_stability(passes, views, bank if samples.training is None else bank[samples.training], seed=config.seed)
    return {name: getattr(found, name).value for name in JUDGED_BY}


def correlations(rows: list[Row]) -> str:
    """Returns Spearman's rank correlations of the measures with the figures, as a table in Markdown.

    "all": over all rows that have the measures. "within": of the rows of one set, mean over the sets. "lead": of each run's lead over
    raw pixels, measure against figure, over all runs; so that the difficulty of a set does not count.
    """
    measured = [row for row in rows if row.get("measures")]
    raw = {(row["set"], row["seed"]): row for row in measured if row["method"] == "raw"}
    lines = []
    for measure, figure in itertools.product(JUDGED_BY, _FIGURES):
        pairs = [(row["measures"][measure], row["figures"][figure]) for row in measured]
        by_set = [
            [(row["measures"][measure], row["figures"][figure]) for row in measured if row["set"] == name]
            for name in dict.fromkeys(row["set"] for row in measured)
        ]
        leads = [
            (row["measures"][measure] - base["measures"][measure], row["figures"][figure] - base["figures"][figure])
            for row in measured
            if row["method"] != "raw" and (base := raw.get((row["set"], row["seed"])))
        ]
        within = [_spearman(each) for each in by_set if len(each) > 2]
        cells = (_spearman(pairs), float(np.mean(within)) if within else float("nan"), _spearman(leads))
        lines.append([measure, figure, *(f"{cell:.2f}" for cell in cells)])
    return markdown(["measure", "figure", "all", "within", "lead"], lines)


def _spearman(pairs: list[tuple[float, float]]) -> float:
    """Returns the rank correlation of pairs; NaN for fewer than three."""
    return float(spearmanr(*zip(*pairs, strict=True)).statistic) if len(pairs) > 2 else float("nan")
