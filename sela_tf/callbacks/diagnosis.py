"""Diagnoses of a self-labelling from the statistics of one epoch: one pure function for each kind, with the message that it gives."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sela_tf.callbacks.label_statistics import ClusterSizes

KINDS = ("loss", "features", "clusters", "labels", "potentials", "waiting", "images")


class Thresholds(NamedTuple):
    """Limits between healthy and ill.

    They were measured on runs that learn: configs/digits.cfg (K = 32) and four epochs of configs/fashion_mnist.cfg (K = 128).
    """

    loss_tolerance: float = 0.1
    """Share of ln K by which the loss may differ from ln K and still count as guessing. Labels of an untrained network begin up to 4.5 %
    below ln K (Fashion-MNIST's first relabelling), and farther below for larger inputs of the heads."""
    min_loss_fall: float = 0.005
    """Share of ln K by which the loss must fall in an epoch while it is near ln K. Healthy first epochs end at .98 (digits, 21 steps), .93
    (AlexNet) and .65 (Fashion-MNIST) of ln K, and the second one falls by .16, .22, .23; where nothing is learned (digits at a rate of
    1e-9), other views and labels move the loss by .002."""
    min_feature_spread: float = 0.02
    """Least `Symptoms.feature_spread`. Healthy: .68 to .83 after any epoch, .20 and .22 before the first step. Dead units have 0."""
    min_label_clusters: float = 0.8
    """Least `Symptoms.label_clusters`. Exactly balanced labels have 1; the plain argmax of a transport that converged has .998 or more
    (digits)."""
    min_network_clusters: float = 0.1
    """Least `Symptoms.network_clusters` once the loss has left ln K, unless it rises. Healthy: .26 to .30 after the first epoch, rising to
    .9; before the first step less than .04."""
    min_changed: float = 0.001
    """Least share of the labels that a relabelling changes. The least of any healthy one was .024, after a cosine schedule had ended."""
    max_potential_range: float = 20.0
    """Largest range of the potentials, in nats of log p. Healthy: it rises to 3.3 (digits) or 8.2 nats (Fashion-MNIST, second epoch), and
    falls again; 9.6 (cliparts) and 13.2 (emoji) in trainings of a hundred epochs."""
    growing_relabellings: float = 6
    """Number of epochs with relabellings, each with a larger range of the potentials than the one before, that count as running away
    above half of `max_potential_range`. Healthy ranges rise four times in a row, to 10.3 nats (emoji, looks nine epochs apart)."""
    max_waiting_share: float = 0.5
    """Largest share of the training time that is spent waiting for data. Healthy: .08 at most. Above a half, the data and not the device
    decide how long training takes."""
    max_same_images: float = 0.1
    """Largest share of the sample's images that are each identical to another one. Healthy: 0 of Fashion-MNIST and of the digits. Where
    transparency was dropped, a quarter of a set of cliparts was one black image."""
    patience_epochs: float = 2
    """Number of ill epochs in a row that make a finding of the kinds loss, labels, waiting and, for the network's own clusters, clusters.
    The first epoch is no measure for these, because of compilation and of the first of several relabellings. The other kinds need no
    patience."""


class Symptoms(NamedTuple):
    """Statistics of a training at the end of an epoch; None where one is not known."""

    loss: float | None
    """Mean loss of the epoch, in nats."""
    loss_before: float | None
    """Mean loss of the epoch before, in nats."""
    head_inputs: np.ndarray | None
    """Inputs of the heads for the sample's images, float32 [M, D]."""
    labels: list[ClusterSizes]
    """Cluster sizes of each head's labels, T of them."""
    network: list[ClusterSizes] | None
    """Cluster sizes of each head's argmax on the sample, T of them."""
    network_clusters_before: float | None
    """`network_clusters` of the epoch before."""
    expected_clusters: float
    """Effective number of clusters, exp(entropy), of the sizes that the labels are to have: K where they are to be equal."""
    changed: float | None
    """Share of the labels that a relabelling changed: the mean over this epoch's relabellings, a head's first not counted."""
    to_come: int
    """Number of relabellings that are still to come."""
    potential_ranges: np.ndarray | None
    """Range of each head's potentials [T], in nats of log p; None before the first relabelling."""
    growing: int
    """Number of epochs with relabellings, in a row up to this one, in which the largest range of the potentials grew."""
    waiting_share: float | None
    """Share of the epoch's training time that was spent on data."""
    cores_wanted: float | None = None
    """Cores that make views as fast as one device takes steps."""
    same_images: float | None = None
    """Share of the sample's images that are each identical to another one."""

    @property
    def num_clusters(self) -> int:
        """The number K of clusters."""
        return len(self.labels[0].sizes)

    @property
    def guessing(self) -> float:
        """The loss ln K of a network that gives every cluster the same probability."""
        return float(np.log(self.num_clusters))

    @property
    def feature_spread(self) -> float | None:
        """Standard deviation of the heads' inputs over the images, as a share of their root mean square.

        It is 1 for inputs with mean zero, and 0 when all images look the same to the heads.
        """
        if self.head_inputs is None:
            return None
        size = np.square(self.head_inputs, dtype=np.float64).mean()
        return float(np.sqrt(self.head_inputs.var(axis=0, dtype=np.float64).mean() / size)) if size else 0.0

    @property
    def label_clusters(self) -> float:
        """Effective number of clusters of the worst head's labels, scaled: 1 for as many as expected, 0 for a single cluster."""
        return _share(self.labels, self.expected_clusters)

    @property
    def network_clusters(self) -> float | None:
        """Effective number of clusters of the worst head's own argmax on the sample, scaled as `label_clusters`.

        The argmax cannot use more clusters than the sample has images.
        """
        return None if self.network is None else _share(self.network, min(self.expected_clusters, self.network[0].sizes.sum()))


def _share(heads: list[ClusterSizes], expected: float) -> float:
    """Scales the least effective number of clusters of the heads from [1, `expected`] to [0, 1]."""
    return (min(head.effective for head in heads) - 1) / max(expected - 1, 1e-9)


class Diagnosis(NamedTuple):
    """The diagnosis of one kind in one epoch."""

    ill: bool | None
    """True for ill, False for healthy; None where this epoch tells nothing, and the diagnosis of before stands."""
    message: str = ""
    """The diagnosis and its remedy in words; empty unless ill."""
    patience_epochs: float = 1
    """Number of ill epochs in a row that make a finding."""


_WELL, _UNKNOWN = Diagnosis(False), Diagnosis(None)


def diagnose(seen: Symptoms, limits: Thresholds) -> dict[str, Diagnosis]:
    """Returns one diagnosis for each of KINDS.

    A diagnosis that follows from another one is left out: where all images look the same to a network, or it guesses, its argmax uses few
    clusters and its labels stand still.

    Args:
        seen: the statistics of the epoch.
        limits: the limits between healthy and ill.
    """
    features = _features(seen, limits)
    loss = _UNKNOWN if features.ill else _loss(seen, limits)
    clusters = _label_clusters(seen, limits)
    if not clusters.ill:
        clusters = _UNKNOWN if features.ill or loss.ill else _network_clusters(seen, limits)
    explained = features.ill or loss.ill or clusters.ill
    return {
        "loss": loss,
        "features": features,
        "clusters": clusters,
        "labels": _UNKNOWN if explained else _labels(seen, limits),
        "potentials": _potentials(seen, limits),
        "waiting": _waiting(seen, limits),
        "images": _images(seen, limits),
    }


def _loss(seen: Symptoms, limits: Thresholds) -> Diagnosis:
    """Diagnoses a loss that stays near ln K, or lies above it."""
    if seen.loss is None or not np.isfinite(seen.loss):
        return _UNKNOWN
    guessing = seen.guessing
    if seen.loss > (1 + limits.loss_tolerance) * guessing:
        message = (
            f"the loss {seen.loss:.3f} is above ln K = {guessing:.3f}, that of guessing: steps are too long. Lower `learning_rate` (in your "
            "own fit, the optimizer's learning_rate)"
        )
        return Diagnosis(True, message, limits.patience_epochs)
    fell = seen.loss_before is not None and seen.loss_before - seen.loss >= limits.min_loss_fall * guessing
    if fell or seen.loss < (1 - limits.loss_tolerance) * guessing:
        return _WELL
    message = (
        f"the loss {seen.loss:.3f} stays near ln K = {guessing:.3f}, that of guessing: nothing is learned. Raise `learning_rate` (in your own "
        "fit, the optimizer's learning_rate)"
    )
    return Diagnosis(True, message, limits.patience_epochs)


def _features(seen: Symptoms, limits: Thresholds) -> Diagnosis:
    """Diagnoses heads' inputs that hardly differ between images."""
    spread = seen.feature_spread
    if spread is None or not np.isfinite(spread) or seen.head_inputs is None or len(seen.head_inputs) < 2:
        return _UNKNOWN
    if spread >= limits.min_feature_spread:
        return _WELL
    dead = int((seen.head_inputs == 0).all(axis=0).sum())
    message = (
        f"the features hardly differ between {len(seen.head_inputs)} images (by {spread:.2%} of their size; {dead} of "
        f"{seen.head_inputs.shape[1]} are always 0): begin again with a lower `learning_rate` or `weight_decay` (in your own fit, those of the "
        "optimizer), or with batch normalisation; unless the images themselves are all alike"
    )
    return Diagnosis(True, message)


def _label_clusters(seen: Symptoms, limits: Thresholds) -> Diagnosis:
    """Diagnoses labels that leave clusters empty or small."""
    if seen.label_clusters >= limits.min_label_clusters:
        return _WELL
    worst = int(np.argmin([head.effective for head in seen.labels]))
    message = (
        f"clusters die: the labels of head {worst} use {seen.labels[worst].in_use} of {seen.num_clusters}, as uneven as "
        f"{seen.labels[worst].effective:.1f} equal ones. Balance them: `exact_balance=True` (in your own fit, SelfLabelling without `assign`)"
    )
    return Diagnosis(True, message)


def _network_clusters(seen: Symptoms, limits: Thresholds) -> Diagnosis:
    """Diagnoses a network whose own argmax uses few clusters although its loss has left ln K."""
    if seen.network is None or seen.network_clusters is None:
        return _UNKNOWN
    if seen.loss is not None and seen.loss >= (1 - limits.loss_tolerance) * seen.guessing:
        # The network has learned too little yet for its argmax to tell anything.
        return _UNKNOWN
    rising = seen.network_clusters_before is not None and seen.network_clusters > seen.network_clusters_before
    if rising or seen.network_clusters >= limits.min_network_clusters:
        return _WELL
    worst = int(np.argmin([head.effective for head in seen.network]))
    message = (
        f"clusters die: head {worst} by itself puts {seen.network[worst].sizes.sum()} images into {seen.network[worst].in_use} of "
        f"{seen.num_clusters}, as uneven as {seen.network[worst].effective:.1f} equal ones, though its labels are not. Fewer "
        "`num_clusters` (of MultiHead and LabelTable), another `learning_rate` (in your own fit, the optimizer's), or a smaller momentum of the "
        "batch normalisation whose moving statistics lag behind"
    )
    return Diagnosis(True, message, limits.patience_epochs)


def _labels(seen: Symptoms, limits: Thresholds) -> Diagnosis:
    """Diagnoses labels that relabellings no longer change."""
    if seen.changed is None or not seen.to_come:
        return _UNKNOWN
    if seen.changed >= limits.min_changed:
        return _WELL
    message = (
        f"the labels stand still: a relabelling changes {seen.changed:.2%} of them, and {seen.to_come} more will cost time for nothing. "
        "Fewer `num_relabellings` (of relabel_steps); if the loss stands still as well, a higher `learning_rate` (the optimizer's)"
    )
    return Diagnosis(True, message, limits.patience_epochs)


def _potentials(seen: Symptoms, limits: Thresholds) -> Diagnosis:
    """Diagnoses potentials whose range is large, or grows without end."""
    if seen.potential_ranges is None:
        return _UNKNOWN
    worst = int(np.argmax(seen.potential_ranges))
    largest = float(seen.potential_ranges[worst])
    growing = seen.growing >= limits.growing_relabellings and largest > limits.max_potential_range / 2
    if largest <= limits.max_potential_range and not growing:
        return _WELL
    how = f", and grow ever farther apart ({seen.growing} epochs in a row)" if growing else ""
    message = (
        f"the potentials run away: those of head {worst} lie {largest:.1f} nats of log p apart (range / lam){how}: the network prefers few "
        "clusters, and the balance is forced on it. Keep its outputs small: a lower `learning_rate`, more `weight_decay` (the optimizer's), fewer "
        "`epochs`. Labels that are not balanced (`exact_balance=False`; in your own fit, an `assign` that does not balance) make it worse"
    )
    return Diagnosis(True, message)


def _waiting(seen: Symptoms, limits: Thresholds) -> Diagnosis:
    """Diagnoses a training that waits for data."""
    if seen.waiting_share is None:
        return _UNKNOWN
    if seen.waiting_share <= limits.max_waiting_share:
        return _WELL
    cores = ""
    if seen.cores_wanted:
        cores = (
            f" (one device takes views as fast as {seen.cores_wanted:.2g} make them, eight as fast as {8 * seen.cores_wanted:.2g})"
        )
    message = (
        f"{seen.waiting_share:.0%} of the training time is spent on data (reading, decoding, drawing views): give it more CPU cores{cores}, more "
        "`memory_limit` if images are decoded again and again, smaller images (`image_size`), or cheaper views (`blur_probability=0`, `hue=0`); "
        "in your own fit, Dataset.cache(), map(num_parallel_calls=tf.data.AUTOTUNE) and prefetch()"
    )
    return Diagnosis(True, message, limits.patience_epochs)


def _images(seen: Symptoms, limits: Thresholds) -> Diagnosis:
    """Diagnoses images that are the same to the network."""
    if seen.same_images is None:
        return _UNKNOWN
    if seen.same_images <= limits.max_same_images:
        return _WELL
    message = (
        f"many images are the same to the network: {seen.same_images:.0%} of the sample are each identical to another, so that their labels "
        "tell nothing. Remove copies, or look at what the images became: transparent ones need another `background`, small details a larger "
        "`image_size` (in your own fit, your own preprocessing)"
    )
    return Diagnosis(True, message)
