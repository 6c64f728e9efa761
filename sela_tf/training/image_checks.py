"""Settings and images that must suit each other, and the size that the network sees."""

from __future__ import annotations

import math
from collections.abc import Sequence

from sela_tf.data.image_set import ImageSet
from sela_tf.models.backbones import check_image_size
from sela_tf.runs.network import NetworkDescription
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.transport.size_bounds import check_size_bounds, parse_size_bounds


def largest_side_of_use(config: SelaConfig, size: tuple[int, ...]) -> int:
    """Returns the shorter side from which on more pixels would add nothing: the smallest crop still has as many as the network sees; 0 for
    vectors."""
    return math.ceil(max(size) / math.sqrt(config.crop_scale)) if size else 0


def network_size(config: SelaConfig, train: ImageSet) -> tuple[int, ...]:
    """Returns (height, width) that the network sees; () for vectors.

    Raises:
        ConfigError: the images have many sizes or too small a one, and no setting names one.
    """
    if config.image_size and train.is_vectors:
        raise ConfigError(
            f"`image_size={config.image_size}` is for images, and `dataset={config.dataset}` has vectors: leave it out"
        )
    if config.image_size:
        return (config.image_size, config.image_size)
    if train.image_size is None:
        raise ConfigError(
            f"the images of `dataset={config.dataset}` have many sizes: say which one the network sees with `image_size`"
        )
    size = tuple(map(int, train.image_size))
    if size and min(size) < 2:
        raise ConfigError(f"the images of `dataset={config.dataset}` are {size[0]} x {size[1]}: give a larger `image_size`")
    return size


def check_settings_suit(config: SelaConfig, train: ImageSet, size: tuple[int, ...] | None) -> None:
    """Refuses settings that do not fit the training images, and the size that the network sees, where it is known.

    Raises:
        ValueError: naming the setting.
    """
    num_images = len(train)
    if config.num_clusters > num_images:
        raise ConfigError(f"`num_clusters={config.num_clusters}` exceeds the {num_images} training images: choose fewer")
    if config.cluster_sizes:
        try:
            check_size_bounds(*parse_size_bounds(config.cluster_sizes), num_images, config.num_clusters)
        except ValueError as error:
            raise ConfigError(f"`cluster_sizes={config.cluster_sizes}`: {error}") from error
    if config.batch_size > num_images:
        raise ConfigError(f"`batch_size={config.batch_size}` exceeds the {num_images} training images: choose a smaller one")
    if config.rotation and train.is_vectors:
        raise ConfigError(f"`rotation` turns images, and `dataset={config.dataset}` has vectors: leave it out")
    if size is None:
        return
    if config.rotation and len(set(size)) > 1:
        raise ConfigError(f"`rotation` turns images, which must be square, not {' x '.join(map(str, size))}: give `image_size`")
    check_image_size(config.backbone, size)


def check_kind(images: ImageSet, network: NetworkDescription, config: SelaConfig) -> None:
    """Checks that images, and not vectors, are given to a network of images; and the reverse.

    Raises:
        ConfigError: it is otherwise.
    """
    of_vectors = len(network.image_shape) == 1
    if images.is_vectors != of_vectors:
        kinds = ("vectors", "images") if of_vectors else ("images", "vectors")
        raise ConfigError(
            f"{_earlier(config)} is a run on {kinds[0]}, and `dataset={config.dataset}` has {kinds[1]}: name a data set of "
            f"{kinds[0]}"
        )


def check_shape(shape: Sequence[int], network: NetworkDescription, config: SelaConfig) -> None:
    """Checks that the input of a network has the shape of the network of the run that is continued.

    Raises:
        ConfigError: it has another one.
    """
    own, theirs = tuple(shape), tuple(network.image_shape)
    if own == theirs:
        return
    ways = []
    if own[-1] != theirs[-1]:
        ways.append(f"give images of {theirs[-1]} channel(s)" if len(theirs) > 1 else f"give vectors of {theirs[-1]} values")
    if own[:-1] != theirs[:-1] and len(set(theirs[:-1])) == 1:
        ways.append(f"add `image_size={theirs[0]}`")
    elif own[:-1] != theirs[:-1]:
        ways.append("give images of that size")
    raise ConfigError(
        f"{_earlier(config)} has a network for {' x '.join(map(str, theirs))}, and the images of `dataset={config.dataset}` "
        f"are {' x '.join(map(str, own))}: {', and '.join(ways)}"
    )


def _earlier(config: SelaConfig) -> str:
    """Returns the words for the run whose network is kept."""
    return f"`continue_from={config.continue_from}`" if config.continue_from else "this run"
