"""The evaluation of several networks on the same images: figures, intervals, comparisons, and the verdict without classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sela_tf.data.augment import Augmentation
from sela_tf.evaluation.arrangement import measure_arrangement
from sela_tf.evaluation.bootstrap import wilson_interval
from sela_tf.evaluation.intervals import ACCURACIES, Answers, compare_networks, label_intervals, network_intervals
from sela_tf.evaluation.metrics import Evaluation, chance_clusters, evaluate_chance, evaluate_labels, evaluate_outputs
from sela_tf.evaluation.outputs import EvaluationOutputs, NetworkPasses, Passes, evaluation_batches
from sela_tf.evaluation.protocol import EvaluationImages, small_samples
from sela_tf.evaluation.raw_pixels import SIDE, RawPixels
from sela_tf.evaluation.stability import NEIGHBOURS, measure_stability, view_pairs
from sela_tf.evaluation.without_classes import StabilityFigures, compare_stability, stability_figures, verdict
from sela_tf.models.heads import find_multi_head
from sela_tf.models.inference import BatchedInference

PROBE_ITERATIONS, _PROBE_WORK = 50, 2 * 10**8
"""Limits of the linear probe on raw pixels: iterations, and images x values x classes, above which it is left out."""


class Judged(NamedTuple):
    """The evaluation of one network."""

    figures: dict[str, Any]
    """The figures of `evaluate_outputs`."""
    answers: Answers
    """The answers that they come from."""
    rows: np.ndarray | None
    """The held-out images that the answers are for; None for all."""
    stability: StabilityFigures
    """The measures that need no classes."""
    outputs: EvaluationOutputs
    """The outputs on the clean views, without embeddings, which take much memory."""


class Judging:
    """An evaluation of several networks on the same images.

    Args:
        images: the images to evaluate on.
        augmentation: the strengths of the random views.
        num_clusters: number of clusters K of the networks, which k-means on raw pixels gets, too.
        seed: seed of samples, views, resamples and k-means.
        strategy: strategy that networks are built under; None for one device.
    """

    def __init__(
        self,
        images: EvaluationImages,
        *,
        augmentation: Augmentation,
        num_clusters: int,
        seed: int,
        strategy: tf.distribute.Strategy | None = None,
    ):
        self.images, self.num_clusters, self.seed, self.strategy = images, num_clusters, seed, strategy
        self._samples = small_samples(images, seed=seed)
        self._batches = evaluation_batches(images)
        views = images.held_out if self._samples.held_out is None else images.held_out.take(self._samples.held_out)
        self._views = view_pairs(views, size=images.size, augmentation=augmentation, seed=seed)

    def network(
        self,
        model: keras.Model,
        *,
        potentials: np.ndarray | None = None,
        lam: float = 1.0,
        fill_statistics: bool = False,
    ) -> Judged:
        """Evaluates a network.

        Args:
            model: a network of `build_model`.
            potentials: potentials [T, K] of the last transport, for the corrected clusters.
            lam: lambda of that transport.
            fill_statistics: first fill the moving statistics of batch normalisation, as a network before its first step needs.
        """
        if fill_statistics:
            BatchedInference(model, self.strategy).fill_moving_statistics(self._batches.training)
        passes = NetworkPasses(model, strategy=self.strategy, potentials=potentials, lam=lam)
        outputs = self._batches.outputs(passes)
        evaluated = evaluate_outputs(
            outputs, self.images, num_clusters=find_multi_head(model).num_clusters, statistics_filled=fill_statistics
        )
        return self._judged(evaluated, None, passes, outputs)

    def raw_pixels(self) -> Judged:
        """Evaluates raw pixels and k-means, on a sample of the held-out images if there are many."""
        batches, rows, images = self._batches, self._samples.held_out, self.images
        passes = RawPixels(
            batches.training, batches.num_training, rows=self._samples.training, num_clusters=self.num_clusters, seed=self.seed
        )
        held_out = passes.outputs(batches.held_out, batches.num_held_out)
        protocol = images.protocol._replace(max_iterations=min(PROBE_ITERATIONS, images.protocol.max_iterations))
        if rows is not None:
            chosen = rows if protocol.held_out_sample is None else protocol.held_out_sample[rows]
            images = images._replace(held_out=images.held_out.take(rows))
            protocol = protocol._replace(held_out_sample=chosen)
            held_out = held_out.take(rows)
        outputs = EvaluationOutputs(passes.training, held_out)
        classes = images.training.classes
        work = outputs.training.embedding.size * (0 if classes is None else int(classes.max()) + 1)
        evaluated = evaluate_outputs(
            outputs,
            images._replace(protocol=protocol),
            num_clusters=passes.num_clusters,
            with_linear_probe=work <= _PROBE_WORK,
        )
        return self._judged(evaluated, rows, passes, outputs)

    def figures(self, *, trained: Judged, untrained: Judged, raw_pixels: Judged, labels: np.ndarray) -> dict[str, Any]:
        """Returns the objects of results.json that hold figures.

        Args:
            trained: the trained network.
            untrained: the network before its first step.
            raw_pixels: raw pixels and k-means.
            labels: labels of the evaluated training images, integers [T, N].
        """
        networks = {"trained": trained, "untrained": untrained, "raw_pixels": raw_pixels}
        train_classes = self.images.training.classes
        classes = None if train_classes is None else self.images.held_out.classes
        figures: dict[str, Any] = {
            **{name: each.figures for name, each in networks.items()},
            "chance": evaluate_chance(classes, self.num_clusters, seed=self.seed),
            "training_labels": evaluate_labels(labels, train_classes),
        }
        shuffled = np.random.default_rng([self.seed, 1]).permuted(trained.answers.clusters, axis=1)
        figures["random_clusters"] = evaluate_labels(shuffled, classes)
        figures["intervals"] = {name: each.stability.intervals for name, each in networks.items()}
        figures["compared"] = {
            name: compare_stability(trained.stability, networks[name].stability) for name in networks if name != "trained"
        }
        if classes is not None:
            self._add_classes(figures, networks, classes)
        if train_classes is not None:
            figures["intervals"]["training_labels"] = label_intervals(
                labels, train_classes, figures["training_labels"], seed=self.seed
            )
        figures["without_classes"] = self._without_classes(networks, figures["compared"])
        return figures

    def _add_classes(self, figures: dict[str, Any], networks: Mapping[str, Judged], classes: np.ndarray) -> None:
        """Adds the intervals and the comparisons that need classes."""
        for name, each in networks.items():
            own = classes if each.rows is None else classes[each.rows]
            figures["intervals"][name] |= network_intervals(each.answers, own, each.figures, seed=self.seed)
            if name != "trained":
                mine = networks["trained"].answers.take(each.rows)
                figures["compared"][name] |= compare_networks(mine, each.answers, own, seed=self.seed)
        share = wilson_interval(int(np.bincount(classes).max()), len(classes))
        clusters = chance_clusters(len(classes), self.num_clusters, seed=self.seed)[np.newaxis]
        figures["intervals"]["chance"] = {
            **dict.fromkeys(ACCURACIES, share),
            **label_intervals(clusters, classes, figures["chance"], seed=self.seed),
        }

    def _without_classes(self, networks: Mapping[str, Judged], compared: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the object of that name of results.json."""
        held_out = self.images.held_out
        arrangement = measure_arrangement(held_out, size=self.images.size, seed=self.seed)
        stability = {name: each.stability.figures for name, each in networks.items()}
        outcome, reason = verdict(
            stability["trained"], compared, arrangement, num_clusters=self.num_clusters, num_images=len(held_out)
        )
        num_training, bank = self._batches.num_training, self._samples.training
        return {
            "outcome": outcome,
            "reason": reason,
            **stability,
            "images": None if arrangement is None else arrangement._asdict(),
            "protocol": (
                f"two random training views of {self._views.num_images} held-out images; {NEIGHBOURS} nearest of "
                f"{num_training if bank is None else len(bank)} training images, clean view, cosine; raw_pixels: at most {SIDE} x {SIDE} "
                "pixels, k-means fitted to the same training images"
            ),
        }

    def _judged(self, evaluated: Evaluation, rows: np.ndarray | None, passes: Passes, outputs: EvaluationOutputs) -> Judged:
        """Returns the evaluation of one network, completed by the measures that need no classes."""
        embedding, bank = outputs.training.embedding, self._samples.training
        stability = measure_stability(passes, self._views, embedding if bank is None else embedding[bank], seed=self.seed)
        figures = stability_figures(stability, outputs.held_out.clusters, seed=self.seed)
        return Judged(*evaluated, rows, figures, outputs.without_embeddings())
