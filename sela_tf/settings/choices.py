"""Settings chosen from the images: from how many there are, how large they are, and whether they are coloured.

The numbers were found by `python -m benchmarks.own_images`, on sets of which none was tuned alone: docs/results.md,
"Settings chosen from the images".
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from sela_tf.settings.fields import CHOSEN
from sela_tf.settings.training import SelaConfig

IMAGES_PER_CLUSTER = 30
"""Training images of a cluster below which clusters hold too little to be learned from."""
_MOST_CLUSTERS = 128
_IMAGES_PER_CLUSTER_OF_THE_PAPER = 1_281_167 // 3000
_HELD_OUT, _MOST_HELD_OUT = 1000, 50_000
"""Held-out images that are wanted: of 1000, a share has a standard error of at most .016; more than 50,000 are not needed."""
_STEPS, _LEAST_EPOCHS = 6000, 10
_SIDE = 64
"""The side that larger images are brought to; from here on the network is a ResNet-18."""
_RELABELLINGS = 30
_STEPS_BETWEEN_LOOKS = 400
_UNKNOWN, _ARE_TOLD = 0.5, 0.65
"""The share of images that must be told to be mirrored, or turned, for views not to be flipped, or for turns to be learned."""
_ROTATION_SHARE, _STEPS_WITH_ROTATION = 0.25, 4000
"""Each step takes 1.75 times as long with a quarter of the images turned, and fewer steps are needed."""
_STEPS_OF_LARGE = 5 / 6
"""The share of the steps that images of 64 pixels and more get, so that thousands of them train in minutes on two processors."""
_RATES = {"sgd": 0.2, "sgdw": 0.2, "lamb": 0.02}
_RATE_OF_TRAINED, _RATE_OF_VECTORS = 0.05, 0.1
_FEWEST_STEPS = 200
"""Steps below which little is learned whatever the images are; the digits take 252."""


Pick: TypeAlias = Callable[[str, Any, str], Any]
"""A function of the name, the value and the reason of a setting; it returns the setting's value, chosen if it was not given."""


class ImagesSeen(NamedTuple):
    """The facts that the choice depends on."""

    num_images: int
    """Images of the source that are trained on, or held out of them."""
    has_held_out: bool
    """The source has a split of its own for evaluation, or another source is named."""
    side: int
    """The shorter side in pixels; the median where images differ; 0 for vectors, or where it is not known yet."""
    have_one_size: bool
    """All images have the same height and width."""
    channels: int
    """1 (gray) or 3 (colour); the length of vectors."""
    is_vectors: bool = False
    replicas: int = 1
    """Devices that a batch is shared by."""
    is_square: bool = False
    """All images have one size, as high as wide."""
    told_mirrored: float = 0.5
    """The share of images that their neighbours rightly tell to be mirrored or not; 0.5, chance, where it is not known yet."""
    told_turned: float = 0.5
    """The same of images turned by 90 degrees."""


class Choice(NamedTuple):
    """A setting that was chosen."""

    name: str
    value: Any
    reason: str


def choose(
    config: SelaConfig, seen: ImagesSeen, given_by: Mapping[str, tuple[Any, str]] | None = None
) -> tuple[SelaConfig, list[Choice]]:
    """Returns the settings with a value for each that was not given, and these choices with their reasons.

    Args:
        config: the settings; those that are None are chosen.
        seen: the images.
        given_by: values that files named by other settings ask for, by the name of the setting, each with its reason.
    """
    choices: list[Choice] = []
    known = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}

    def pick(name: str, value: Any, reason: str) -> Any:
        """Returns the value of a setting, chosen if it was not given."""
        if known[name] is CHOSEN:
            known[name], reason = (given_by or {}).get(name, (value, reason))
            choices.append(Choice(name, known[name], reason))
        return known[name]

    train = _pick_held_out(pick, seen)
    can_turn = False
    if seen.is_vectors:
        _pick_network_of_vectors(pick)
    else:
        can_turn = _pick_network_of_images(pick, seen) and not config.labels_from
    _pick_views(pick, seen)
    turns = _pick_turns(pick, seen, can_turn=can_turn)
    steps = _STEPS_WITH_ROTATION if turns else _STEPS
    if not seen.is_vectors and (known["image_size"] or seen.side) >= _SIDE:
        steps = round(_STEPS_OF_LARGE * steps)
    epochs = _pick_learning(pick, train, seen, config, steps=steps)
    _pick_labels(pick, train, epochs, has_labels=bool(config.labels_from))
    return dataclasses.replace(config, **{choice.name: choice.value for choice in choices}), choices


def _pick_held_out(pick: Pick, seen: ImagesSeen) -> int:
    """Returns the number of training images, about."""
    if seen.has_held_out:
        pick("eval_fraction", 0.1, "not used: there are images for evaluation")
        return seen.num_images
    share = min(max(0.1, _HELD_OUT / seen.num_images), 0.25, max(_MOST_HELD_OUT / seen.num_images, 0.001))
    share = round(share, 3)
    held_out = round(share * seen.num_images)
    error = math.sqrt(0.25 / max(held_out, 1))
    share = pick("eval_fraction", share, f"some {held_out} images, so that an accuracy is known to ±{2 * error:.2g}")
    return round((1 - share) * seen.num_images)


def _pick_network_of_vectors(pick: Pick) -> None:
    pick("image_size", 0, "vectors")
    backbone = pick("backbone", "mlp", "vectors")
    pick("width", 128 if backbone == "mlp" else 0, "vectors")
    pick("hidden_units", 128, "vectors")


def _pick_network_of_images(pick: Pick, seen: ImagesSeen) -> bool:
    """Returns True if the network sees squares."""
    side = seen.side or _SIDE
    if seen.have_one_size and side <= _SIDE:
        size = pick("image_size", 0, f"the images' own size, {side} pixels")
    elif side >= _SIDE:
        size = pick("image_size", _SIDE, f"the images have {side} pixels; more would cost in proportion to the area")
    else:
        size = pick("image_size", max(side, 8), "the median of the images' shorter sides")
    is_square = bool(size) or seen.is_square
    size = size or side
    backbone = pick("backbone", "resnet18" if size >= _SIDE else "resnet8", f"images of {size} pixels")
    if backbone == "resnet18":
        pick("width", 16, "a quarter of the published width, for the time")
    else:
        pick("width", 0, "as published")
    pick("hidden_units", 256, "a hidden layer before the heads keeps the embedding general")
    return is_square


def _pick_views(pick: Pick, seen: ImagesSeen) -> None:
    is_colour = seen.channels == 3 and not seen.is_vectors
    pick(
        "crop_scale",
        0.5,
        "not used by vectors" if seen.is_vectors else "smaller crops suited clothes, larger ones letters",
    )
    if seen.is_vectors:
        pick("flip_probability", 0.0, "vectors")
    else:
        is_told = seen.told_mirrored > _ARE_TOLD
        pick("flip_probability", 0.0 if is_told else 0.5, _told_in_words("mirrored", seen.told_mirrored))
    why = "colours often tell things apart" if is_colour else "vectors" if seen.is_vectors else "gray images"
    pick("saturation", 0.2 if is_colour else 0.0, why)
    pick("hue", 0.0, why)
    pick("grayscale_probability", 0.0, why)
    kind = "vectors" if seen.is_vectors else "for vectors only"
    pick("feature_noise", 0.5 if seen.is_vectors else 0.0, kind)
    pick("feature_dropout", 0.5 if seen.is_vectors else 0.0, kind)


def _pick_turns(pick: Pick, seen: ImagesSeen, *, can_turn: bool) -> bool:
    """Returns True if turns are learned, too."""
    is_told = seen.told_turned > _ARE_TOLD
    why = (
        _told_in_words("turned", seen.told_turned) if can_turn else "vectors, images that are not square, or labels that are given"
    )
    turns = pick("rotation", can_turn and is_told, why)
    pick("rotation_share", _ROTATION_SHARE if turns else 1.0, "all turns of a quarter of the images" if turns else "not used")
    return bool(turns)


def _told_in_words(change: str, share: float) -> str:
    """Returns whether images that are changed in some way can be told from others."""
    if share == _UNKNOWN:
        return f"it is not known whether {change} images can be told from others"
    can = "can" if share > _ARE_TOLD else "cannot"
    return f"{change} images {can} be told from others (their neighbours tell {share:.0%}; the limit is {_ARE_TOLD:.0%})"


def _pick_learning(pick: Pick, train: int, seen: ImagesSeen, config: SelaConfig, *, steps: int) -> int:
    """Returns the number of epochs."""
    replicas = seen.replicas
    wanted = 64 if train < 20_000 else 128 if train < 100_000 else 256
    # Each device gets two images at least, for its batch statistics.
    # The number of images that a hash holds out is known only roughly.
    fits = max(min(wanted, train // 2) // replicas, 2) * replicas
    batch = pick("batch_size", fits, f"{train} training images" if fits <= train else "two images for each device")
    steps_per_epoch = max(train // batch, 1)
    epochs = max(math.ceil(steps / steps_per_epoch), _LEAST_EPOCHS)
    epochs = pick("epochs", epochs, f"{epochs * steps_per_epoch} steps of {batch} images")
    is_gentle = seen.is_vectors or bool(config.backbone_weights)
    if config.backbone_weights:
        pick("learning_rate", _RATE_OF_TRAINED, "the backbone is trained already")
    else:
        rate = _RATE_OF_VECTORS if seen.is_vectors else _RATES[config.optimizer]
        pick("learning_rate", rate, "vectors" if seen.is_vectors else f"for {config.optimizer}")
    why = "vectors, or a trained backbone" if is_gentle else "as in the recipe fashion_mnist_best"
    pick("weight_decay", 1e-5 if is_gentle else 5e-4, why)
    looks = max(_STEPS_BETWEEN_LOOKS // steps_per_epoch, 1)
    pick("monitor_epochs", looks, f"a look and a checkpoint every {looks * steps_per_epoch} steps")
    return epochs


def _pick_labels(pick: Pick, train: int, epochs: int, *, has_labels: bool) -> None:
    clusters = max(min(train // IMAGES_PER_CLUSTER, _MOST_CLUSTERS), train // _IMAGES_PER_CLUSTER_OF_THE_PAPER, 2)
    pick("num_clusters", clusters, f"some {train // clusters} training images in each")
    pick("num_heads", 1, "more take longer: ten helped on letters, and not on emoji")
    pick(
        "num_relabellings",
        0 if has_labels else relabellings_of(epochs),
        "labels are given" if has_labels else "spread over the training",
    )


def relabellings_of(epochs: int) -> int:
    """Returns the number of relabellings that is chosen for a number of epochs: a label pass costs about half an epoch."""
    return min(max(epochs // 2, 2), _RELABELLINGS)


def contradictions(config: SelaConfig, num_training_images: int) -> list[str]:
    """Returns a line for each setting that was given and hardly fits the number of training images.

    Args:
        config: settings of which none is None.
        num_training_images: training images N.
    """
    lines = []
    images_per_cluster = num_training_images / config.num_clusters
    fit = num_training_images // IMAGES_PER_CLUSTER
    if fit < 2:
        lines.append(f"`dataset={config.dataset}`: {num_training_images} training images are too few to learn much from")
    elif 1 <= images_per_cluster < IMAGES_PER_CLUSTER / 3:
        lines.append(
            f"`num_clusters={config.num_clusters}` leaves {images_per_cluster:.1f} of the {num_training_images} training images to a cluster, "
            f"which is too few to learn from: `num_clusters={fit}` leaves {IMAGES_PER_CLUSTER}"
        )
    steps_per_epoch = num_training_images // config.batch_size
    steps = config.epochs * steps_per_epoch
    if 0 < steps < _FEWEST_STEPS and not (config.labels_from or config.continue_from):
        lines.append(
            f"`epochs={config.epochs}` with `batch_size={config.batch_size}` are {steps} steps, and a network needs thousands: "
            f"`epochs={math.ceil(_STEPS / steps_per_epoch)}` are {_STEPS}"
        )
    return lines


def choices_table(choices: list[Choice]) -> str:
    """Returns the choices as a table, a setting a line, with its reason."""
    width = max(len(f"{choice.name}={choice.value}") for choice in choices)
    return "\n".join(f"  {f'{choice.name}={choice.value}':<{width}}  {choice.reason}" for choice in choices)
