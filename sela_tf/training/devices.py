"""The devices that a run trains on, and what is refused before any image is read."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from sela_tf.models.backbones import check_backbone
from sela_tf.settings.fields import CHOSEN, ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.cluster import TF_CONFIG, Cluster, LostWorkerError, cluster_of, gone, meet, missing_of, watched
from sela_tf.training.optimizer import check_optimizer
from sela_tf.training.workers import Workers
from sela_tf.transport.shards import ALONE, Shards

# After a failed message, a process that ended may still be seen at its address for a moment.
_SECONDS_TO_LOOK = 20.0


class Devices(NamedTuple):
    """The devices that a run trains on, and the processes that they are of."""

    strategy: tf.distribute.Strategy
    """The strategy over all of them."""
    shards: Shards = ALONE
    """The processes, of which this is one."""


def prepare_devices(config: SelaConfig) -> tf.distribute.Strategy:
    """Seeds all randomness, makes operations deterministic, and returns a strategy over the devices of this machine that are visible."""
    _split_devices(config)
    _seed(config)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    # For one device the default strategy is taken, which costs nothing.
    if len(devices) == 1 or config.strategy == "one":
        return tf.distribute.get_strategy()
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def cluster_to_join(strategy: str) -> Cluster | None:
    """Returns the processes that a run of this `strategy` is to be trained by; None for this one alone.

    Raises:
        ConfigError: several are asked for, and TF_CONFIG does not name them; or what it says is wrong.
    """
    cluster = cluster_of(os.environ) if strategy in ("auto", "multiworker") else None
    if cluster is None and strategy == "multiworker":
        raise ConfigError(
            f"`strategy=multiworker` needs the environment variable {TF_CONFIG} with the addresses of several processes "
            f"(Received: {os.environ.get(TF_CONFIG, '')!r}): let the launcher set it, or leave `strategy` out"
        )
    return cluster


@contextlib.contextmanager
def devices_of(config: SelaConfig, cluster: Cluster | None, *, timeout: float) -> Iterator[Devices]:
    """Prepares the devices of this process, and joins them with those of the other processes of a cluster, where there is one.

    Args:
        config: the settings.
        cluster: the processes that train together; None for this one alone.
        timeout: the seconds within which all of them have to come.

    Raises:
        ConfigError: several processes are asked for, and TF_CONFIG does not name them.
        LostWorkerError: a process does not come, or is gone while the context lasts.
    """
    if cluster is None:
        yield Devices(prepare_devices(config))
        return
    _split_devices(config)
    meet(cluster, seconds=timeout)
    try:
        with watched(cluster):
            # TensorFlow wants it before anything else runs.
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
            _seed(config)
            workers = Workers(strategy, cluster.task, len(cluster.addresses))
            yield Devices(strategy, workers)
            # Nobody leaves before the others stopped looking after it.
            workers.total(0)
    except tf.errors.OpError as error:
        deadline = time.monotonic() + _SECONDS_TO_LOOK
        while time.monotonic() < deadline:
            if missing := missing_of(cluster):
                raise LostWorkerError(gone(cluster, missing)) from error
            time.sleep(1)
        raise


def _split_devices(config: SelaConfig) -> None:
    """Lets the memory of graphics cards grow, hides all but one where one is asked for, and splits the CPU where that is asked for."""
    gpus = tf.config.list_physical_devices("GPU")
    # Where TensorFlow runs already, as in a notebook, its owner has decided.
    with contextlib.suppress(RuntimeError):
        for gpu in gpus:
            tf.config.experimental.set_memory_growth(gpu, True)
        if config.strategy == "one":
            # The transport takes all that are visible.
            tf.config.set_visible_devices(gpus[:1], "GPU")
    if config.logical_cpus:
        cpu = tf.config.list_physical_devices("CPU")[0]
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * config.logical_cpus)
        except RuntimeError as error:
            if config.logical_cpus != len(tf.config.list_logical_devices("CPU")):
                raise ConfigError(f"`logical_cpus={config.logical_cpus}` comes too late: TensorFlow is already running") from error


def _seed(config: SelaConfig) -> None:
    """Seeds all randomness, and makes operations deterministic."""
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)


def check_before_loading(config: SelaConfig, strategy: tf.distribute.Strategy) -> None:
    """Refuses what cannot work whatever the images are.

    Raises:
        ConfigError: naming the setting.
    """
    replicas = strategy.num_replicas_in_sync
    if config.backbone is not CHOSEN:
        try:
            check_backbone(config.backbone)
        except ValueError as error:
            raise ConfigError(str(error)) from error
    check_optimizer(config.optimizer)
    if config.xla and replicas > 1:
        raise ConfigError(f"`xla` works on one device only, and {replicas} are visible: leave it off, or hide devices")
    if config.batch_size is not CHOSEN and config.batch_size % replicas:
        raise ConfigError(f"`batch_size={config.batch_size}` cannot be shared equally by {replicas} devices")
