"""Settings of a run that exclude or need one another, and those whose values have a form of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sela_tf.settings.fields import CHOSEN, ConfigError
from sela_tf.transport.marginals import check_marginals
from sela_tf.transport.size_bounds import parse_size_bounds

if TYPE_CHECKING:
    from sela_tf.settings.training import SelaConfig

_LARGEST_SIDE = 2**13
"""Pixels beyond which a batch of images fits into no memory."""


def check_contradictions(config: SelaConfig) -> None:
    """Checks the settings of a run against one another.

    Raises:
        ConfigError: two of them exclude each other, one needs another, or a value has not the form that it must have; the message names them.
    """
    if config.image_size is not CHOSEN and config.image_size > _LARGEST_SIDE:
        raise ConfigError(f"`image_size` must be at most {_LARGEST_SIDE}. Received: `image_size={config.image_size}`")
    if config.image_size == 1:
        raise ConfigError("`image_size` must be 0 or at least 2. Received: `image_size=1`")
    for name in ("backbone_learning_rate", "frozen_epochs"):
        value = getattr(config, name)
        if value and not config.backbone_weights:
            raise ConfigError(f"`{name}={value}` is for a backbone that starts from `backbone_weights`: give them, or leave it out")
        if value and config.optimizer != "sgd":
            raise ConfigError(f"`{name}={value}` needs `optimizer=sgd`. Received: `optimizer={config.optimizer}`")
    if config.optimizer == "lamb" and config.momentum != 0.9:
        raise ConfigError(
            f"`momentum={config.momentum}` is of no use to `optimizer=lamb`, which has moments of its own: leave it out"
        )
    try:
        check_marginals(config.marginals, config.num_clusters or 2)
    except ValueError as error:
        raise ConfigError(f"`marginals={config.marginals}`: {error}") from error
    try:
        parse_size_bounds(config.cluster_sizes)
    except ValueError as error:
        raise ConfigError(f"`cluster_sizes={config.cluster_sizes}`: {error}") from error
    if config.cluster_sizes and config.marginals != "uniform":
        raise ConfigError(
            f"`cluster_sizes={config.cluster_sizes}` and `marginals={config.marginals}` both say how large clusters are: give one of them"
        )
    if config.labels_from and config.num_relabellings:
        raise ConfigError(
            f"`labels_from` keeps the labels of {config.labels_from}: add `num_relabellings=0`. "
            f"Received: `num_relabellings={config.num_relabellings}`"
        )
    if config.rotation_share not in (CHOSEN, 1) and not config.rotation:
        raise ConfigError(f"`rotation_share={config.rotation_share}` needs `rotation`: add it, or leave the share out")
    if config.labels_from and config.known_labels:
        raise ConfigError("`labels_from` and `known_labels` exclude each other: the labels of another run are all known")
    for name in ("labels_from", "backbone_weights"):
        if config.continue_from and getattr(config, name):
            raise ConfigError(
                f"`continue_from={config.continue_from}` has labels and weights: leave `{name}={getattr(config, name)}` out"
            )
    if not all(0 < share <= 1 for share in config.lr_drops) or list(config.lr_drops) != sorted(config.lr_drops):
        raise ConfigError(f"`lr_drops` must be increasing shares of the epochs. Received: {config.lr_drops}")
