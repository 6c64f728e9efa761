"""The images that a run is evaluated on, decided from the size of its sets alone."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sela_tf.data.image_set import ImageSet

SAMPLED_ABOVE = 100_000
"""Training images; with more of them, "auto" samples."""
SAMPLED_TRAINING, SAMPLED_HELD_OUT = 50_000, 10_000
_ITERATIONS, _SAMPLED_ITERATIONS = 500, 100
_TRAINING_KEY, _HELD_OUT_KEY = 1, 2

LEFT_OUT = "evaluation was left out (--evaluate=none)"


class EvaluationProtocol(NamedTuple):
    """The images that every figure is taken on, the same for a trained and an untrained network, and the linear probe's limit."""

    kind: str
    """full, sampled or none."""
    num_training: int
    """N, of the whole set."""
    num_held_out: int
    """M, of the whole set."""
    training_sample: np.ndarray | None = None
    """int64, increasing indices below N; None for all."""
    held_out_sample: np.ndarray | None = None
    """int64, increasing indices below M; None for all."""
    max_iterations: int = _ITERATIONS
    """The limit of the logistic regression's solver, which stops there, converged or not."""

    @property
    def training_size(self) -> int:
        """Training images that are looked at; 0 where nothing is."""
        return _size(self.kind, self.num_training, self.training_sample)

    @property
    def held_out_size(self) -> int:
        """Held-out images that are looked at; 0 where nothing is."""
        return _size(self.kind, self.num_held_out, self.held_out_sample)

    @property
    def training_words(self) -> str:
        """The training images, as the protocol line names them."""
        return _words("all ", self.num_training, "training", self.training_sample)

    @property
    def held_out_words(self) -> str:
        """The held-out images, as the protocol line names them."""
        return _words("", self.num_held_out, "held-out", self.held_out_sample)

    @property
    def solver_words(self) -> str:
        """The limit of iterations, where it is not that of an evaluation in full."""
        return f", at most {self.max_iterations} iterations," if self.kind == "sampled" else ""

    @property
    def labels_words(self) -> str:
        """The images whose labels were compared with the classes, in words, where that is not all of them."""
        if self.training_sample is None:
            return ""
        return " Agreement of the labels with the classes, during training and after it: on these training images."

    def training(self, images: ImageSet) -> ImageSet:
        """The training images that are looked at."""
        return images if self.training_sample is None else images.take(self.training_sample)

    def held_out(self, images: ImageSet) -> ImageSet:
        """The held-out images that are looked at."""
        return images if self.held_out_sample is None else images.take(self.held_out_sample)


def evaluation_protocol(evaluate: str, num_training: int, num_held_out: int, *, seed: int = 0) -> EvaluationProtocol:
    """The protocol that a setting stands for.

    Args:
        evaluate: full for all images; sampled for at most SAMPLED_TRAINING training and SAMPLED_HELD_OUT held-out images and a probe of
            fewer iterations; auto for sampled above SAMPLED_ABOVE training images, else full; none for no evaluation at all.
        num_training: N.
        num_held_out: M.
        seed: of the samples.

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
        _sample(num_training, SAMPLED_TRAINING, [seed, _TRAINING_KEY]),
        _sample(num_held_out, SAMPLED_HELD_OUT, [seed, _HELD_OUT_KEY]),
        _SAMPLED_ITERATIONS,
    )


def _sample(count: int, at_most: int, key: list[int]) -> np.ndarray | None:
    return None if count <= at_most else np.sort(np.random.default_rng(key).permutation(count)[:at_most])


def _size(kind: str, count: int, sample: np.ndarray | None) -> int:
    if kind == "none":
        return 0
    return count if sample is None else len(sample)


def _words(all_of_them: str, count: int, name: str, sample: np.ndarray | None) -> str:
    if sample is None:
        return f"{all_of_them}{count} {name} images"
    return f"{len(sample)} of {count} {name} images, drawn at random"
