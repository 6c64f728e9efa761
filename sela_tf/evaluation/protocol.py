"""The evaluation protocol: which images a run is evaluated on, decided by the sizes of its sets alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sela_tf.data.image_set import ImageSet

SAMPLED_ABOVE = 100_000
"""The number of training images above which "auto" means "sampled"."""
SAMPLED_TRAINING, SAMPLED_HELD_OUT = 50_000, 10_000
_ITERATIONS, _SAMPLED_ITERATIONS = 500, 100
SMALL_TRAINING, SMALL_HELD_OUT = 10_000, 2000
"""The most images of what would take long on all of them: the stability of a network, and raw pixels, which have many values."""
_TRAINING_KEY, _HELD_OUT_KEY, _SMALL_TRAINING_KEY, _SMALL_HELD_OUT_KEY = 1, 2, 3, 4

LEFT_OUT = "evaluation was left out (`evaluate=none`)"
"""The reason that results.json gives for metrics that are null because no evaluation was wanted."""


class EvaluationProtocol(NamedTuple):
    """The choice of the images that every metric is taken on, and the limit of the linear probe's solver.

    The choice is the same for the trained and the untrained network, so that their metrics can be compared.
    """

    kind: str
    """Kind of the evaluation: "full", "sampled" or "none"."""
    num_training: int
    """Number of images N of the whole training set."""
    num_held_out: int
    """Number of images M of the whole held-out set."""
    training_sample: np.ndarray | None = None
    """Indices of the chosen training images, int64, increasing, below N; None for all."""
    held_out_sample: np.ndarray | None = None
    """Indices of the chosen held-out images, int64, increasing, below M; None for all."""
    max_iterations: int = _ITERATIONS
    """Limit of the logistic regression's solver, which stops there whether it converged or not."""

    @property
    def training_size(self) -> int:
        """The number of training images that are evaluated on; 0 without evaluation."""
        return _size(self.kind, self.num_training, self.training_sample)

    @property
    def held_out_size(self) -> int:
        """The number of held-out images that are evaluated on; 0 without evaluation."""
        return _size(self.kind, self.num_held_out, self.held_out_sample)

    @property
    def training_words(self) -> str:
        """The training images in words, for the protocol line of results.json."""
        return _words("all ", self.num_training, "training", self.training_sample)

    @property
    def held_out_words(self) -> str:
        """The held-out images in words, for the protocol line of results.json."""
        return _words("", self.num_held_out, "held-out", self.held_out_sample)

    @property
    def solver_words(self) -> str:
        """The limit of the solver's iterations in words; empty where it is that of a full evaluation."""
        return f", at most {self.max_iterations} iterations," if self.kind == "sampled" else ""

    @property
    def labels_words(self) -> str:
        """The images whose labels are compared with the classes, in words; empty where these are all training images."""
        if self.training_sample is None:
            return ""
        return " Agreement of the labels with the classes, during training and after it: on these training images."

    def training(self, images: ImageSet) -> ImageSet:
        """Returns the chosen ones of the training images."""
        return images if self.training_sample is None else images.take(self.training_sample)

    def held_out(self, images: ImageSet) -> ImageSet:
        """Returns the chosen ones of the held-out images."""
        return images if self.held_out_sample is None else images.take(self.held_out_sample)


class EvaluationImages(NamedTuple):
    """The images that a network is evaluated on, as a protocol chose them."""

    training: ImageSet
    """Training images: the bank of the kNN, and what the linear probe is fitted to."""
    held_out: ImageSet
    """Held-out images, which the metrics are taken on."""
    size: tuple[int, ...]
    """(height, width) that the network sees; () for vectors."""
    protocol: EvaluationProtocol
    """The protocol that chose the images."""

    @property
    def have_classes(self) -> bool:
        """True if both sets have class labels, so that kNN and linear probe can be scored."""
        return self.training.classes is not None and self.held_out.classes is not None


def evaluation_images(
    training: ImageSet, held_out: ImageSet, size: tuple[int, ...], protocol: EvaluationProtocol | None = None
) -> EvaluationImages:
    """Returns the images that `protocol` chooses from two whole sets.

    Args:
        training: all training images.
        held_out: all held-out images.
        size: (height, width) that the network sees; () for vectors.
        protocol: the choice; None for all images.
    """
    if protocol is None:
        protocol = evaluation_protocol("full", len(training), len(held_out))
    return EvaluationImages(protocol.training(training), protocol.held_out(held_out), size, protocol)


def evaluation_protocol(evaluate: str, num_training: int, num_held_out: int, *, seed: int = 0) -> EvaluationProtocol:
    """Returns the protocol that the setting `evaluate` stands for.

    Args:
        evaluate: "full" for all images; "sampled" for at most SAMPLED_TRAINING training and SAMPLED_HELD_OUT held-out images and a linear
            probe of fewer iterations; "auto" for "sampled" above SAMPLED_ABOVE training images, else "full"; "none" for no evaluation.
        num_training: number of training images N.
        num_held_out: number of held-out images M.
        seed: seed of the samples.

    Raises:
        ValueError: there is no such protocol.
    """
    if evaluate not in ("auto", "full", "sampled", "none"):
        raise ValueError(f"`evaluate` must be auto, full, sampled or none. Received: evaluate={evaluate!r}")
    if evaluate == "auto":
        evaluate = "sampled" if num_training > SAMPLED_ABOVE else "full"
    if evaluate != "sampled":
        return EvaluationProtocol(evaluate, num_training, num_held_out)
    return EvaluationProtocol(
        evaluate,
        num_training,
        num_held_out,
        sample_rows(num_training, SAMPLED_TRAINING, [seed, _TRAINING_KEY]),
        sample_rows(num_held_out, SAMPLED_HELD_OUT, [seed, _HELD_OUT_KEY]),
        _SAMPLED_ITERATIONS,
    )


class SmallSamples(NamedTuple):
    """Samples of the images of an evaluation, for measures that would take long on all of them."""

    training: np.ndarray | None
    """Increasing indices among the training images: the bank of neighbours of the stability, and what k-means is fitted to; None for all."""
    held_out: np.ndarray | None
    """Increasing indices among the held-out images: those whose random views are compared, and that raw pixels are scored on; None for all."""


def small_samples(images: EvaluationImages, *, seed: int) -> SmallSamples:
    """Returns the samples for `images`, drawn by `seed`."""
    return SmallSamples(
        sample_rows(len(images.training), SMALL_TRAINING, [seed, _SMALL_TRAINING_KEY]),
        sample_rows(len(images.held_out), SMALL_HELD_OUT, [seed, _SMALL_HELD_OUT_KEY]),
    )


def sample_rows(count: int, at_most: int, key: list[int]) -> np.ndarray | None:
    """Returns `at_most` increasing indices below `count`, drawn at random; None if that is all of them."""
    return None if count <= at_most else np.sort(np.random.default_rng(key).permutation(count)[:at_most])


def _size(kind: str, count: int, sample: np.ndarray | None) -> int:
    """Returns the number of images that are evaluated on, of a set of `count`."""
    if kind == "none":
        return 0
    return count if sample is None else len(sample)


def _words(all_of_them: str, count: int, name: str, sample: np.ndarray | None) -> str:
    """Returns the images of a set in words, with `all_of_them` before the number where there is no sample."""
    if sample is None:
        return f"{all_of_them}{count} {name} images"
    return f"{len(sample)} of {count} {name} images, drawn at random"
