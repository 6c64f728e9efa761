"""The devices that a run trains on, and what is refused before any image is read."""

from __future__ import annotations

import contextlib

import keras
import tensorflow as tf

from sela_tf.models.backbones import check_backbone
from sela_tf.settings.fields import CHOSEN, ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.optimizer import check_optimizer


def prepare_devices(config: SelaConfig) -> tf.distribute.Strategy:
    """Seeds all randomness, makes operations deterministic, and returns a strategy over all devices that are visible."""
    for gpu in tf.config.list_physical_devices("GPU"):
        # Where TensorFlow runs already, as in a notebook, its owner has decided.
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)
    if config.logical_cpus:
        cpu = tf.config.list_physical_devices("CPU")[0]
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * config.logical_cpus)
        except RuntimeError as error:
            if config.logical_cpus != len(tf.config.list_logical_devices("CPU")):
                raise ConfigError(f"`logical_cpus={config.logical_cpus}` comes too late: TensorFlow is already running") from error
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    # For one device the default strategy is taken, which costs nothing.
    return tf.distribute.MirroredStrategy([device.name for device in devices]) if len(devices) > 1 else tf.distribute.get_strategy()


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
