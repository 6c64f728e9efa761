"""What a run is made of, each from the settings: devices, images, network."""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sela_tf.config import ConfigError, SelaConfig
from sela_tf.data.augment import Augmentation
from sela_tf.data.image_set import ImageSet
from sela_tf.data.label_files import read_run_labels
from sela_tf.data.pipeline import channel_statistics, training_batches, with_rotations
from sela_tf.data.sources import load_source
from sela_tf.data.splits import hold_out, match_classes, match_input, unbalanced
from sela_tf.models import build_model, check_backbone, with_rotation_head
from sela_tf.optimizer import CoupledSGD, learning_rate_schedule
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.self_labelling.loss import SelfLabelLoss


class Data(NamedTuple):
    """The images of a run, and what the network has to know of them."""

    train: ImageSet
    held_out: ImageSet
    size: tuple[int, ...]
    """(height, width) that the network sees; () of vectors."""
    mean: np.ndarray
    variance: np.ndarray


def prepare_devices(config: SelaConfig) -> tf.distribute.Strategy:
    """Seeds, determinism, and a strategy over all devices that are visible."""
    for gpu in tf.config.list_physical_devices("GPU"):
        # where TensorFlow runs already, as in a notebook, its owner has decided
        with contextlib.suppress(RuntimeError):
            tf.config.experimental.set_memory_growth(gpu, True)
    if config.logical_cpus:
        cpu = tf.config.list_physical_devices("CPU")[0]
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * config.logical_cpus)
        except RuntimeError as error:
            if config.logical_cpus != len(tf.config.list_logical_devices("CPU")):
                raise ConfigError(f"--logical_cpus={config.logical_cpus} comes too late: TensorFlow is already running") from error
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(config.seed)
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    # one device: the default strategy, which costs nothing
    return tf.distribute.MirroredStrategy([device.name for device in devices]) if len(devices) > 1 else tf.distribute.get_strategy()


def check_before_loading(config: SelaConfig, strategy: tf.distribute.Strategy) -> None:
    """Refuses what cannot work whatever the images are.

    Raises:
        ConfigError: naming the setting.
    """
    replicas = strategy.num_replicas_in_sync
    try:
        check_backbone(config.backbone)
    except ValueError as error:
        raise ConfigError(str(error).replace("`backbone`", "--backbone")) from error
    if config.xla and replicas > 1:
        raise ConfigError(f"--xla works on one device only, and {replicas} are visible: leave it off, or hide devices")
    if config.batch_size % replicas:
        raise ConfigError(f"--batch_size={config.batch_size} cannot be shared equally by {replicas} devices")


def load_data(config: SelaConfig) -> Data:
    """The images for training, those held out, and what the network has to know of them.

    Raises:
        ValueError: they cannot be loaded (SourceError), or their size is not known (ConfigError).
    """
    options: dict[str, Any] = {
        "data_dir": config.data_dir,
        "download": config.download,
        "use_classes": config.classes == "auto",
        "skip_bad_images": config.skip_bad_images,
        "memory_limit": int(config.memory_limit * 2**30),
    }
    if config.dataset.startswith("folder:"):
        print(f"reading and checking every image of {config.dataset.removeprefix('folder:')!r}", flush=True)
    splits = load_source(config.dataset, **options)
    report = list(splits.report)
    if config.eval_dataset:
        other = load_source(config.eval_dataset, flag="--eval_dataset", **options)
        report += other.report
        train, held_out = splits.train, other.eval or other.train
    elif splits.eval is not None:
        train, held_out = splits.train, splits.eval
    else:
        train, held_out = hold_out(splits.train, config.eval_fraction)
    train, held_out = match_classes(train, held_out)
    if train.classes is not None and len(np.unique(train.classes)) < 2:
        report.append("all training images have the same class label, so class labels are not used")
        train = dataclasses.replace(train, classes=None, class_names=None)
    if config.imbalance != "none":
        whole = len(train)
        train = unbalanced(train, config.imbalance, seed=config.seed)
        report.append(f"--imbalance={config.imbalance}: {len(train)} of {whole} training images are kept")
    for line in report:
        print(line, flush=True)
    size: tuple[int, ...]
    if config.image_size and train.is_vectors:
        raise ConfigError(
            f"--image_size={config.image_size} is for images, and --dataset={config.dataset} has vectors: leave it out"
        )
    if config.image_size:
        size = (config.image_size, config.image_size)
    elif train.image_size is not None:
        size = tuple(map(int, train.image_size))
    else:
        raise ConfigError(
            f"the images of --dataset={config.dataset} have many sizes: say which one the network sees with --image_size"
        )
    if size and min(size) < 2:
        raise ConfigError(f"the images of --dataset={config.dataset} are {size[0]} x {size[1]}: give a larger --image_size")
    mean, variance = channel_statistics(train, size=size, seed=config.seed)
    return Data(train, match_input(held_out, (*size, train.channels)), size, mean, variance)


def load_training_data(config: SelaConfig) -> Data:
    """As `load_data`, of images that can be trained on as the settings say.

    Raises:
        ValueError: likewise, or the settings do not fit the images (ConfigError).
    """
    data = load_data(config)
    num_images = len(data.train)
    if config.num_clusters > num_images:
        raise ConfigError(f"--num_clusters={config.num_clusters} exceeds the {num_images} training images: choose fewer")
    if config.batch_size > num_images:
        raise ConfigError(f"--batch_size={config.batch_size} exceeds the {num_images} training images: choose a smaller one")
    if config.rotation and data.train.is_vectors:
        raise ConfigError(f"--rotation turns images, and --dataset={config.dataset} has vectors: leave it out")
    if config.rotation and len(set(data.size)) > 1:
        raise ConfigError(
            f"--rotation turns images, which must be square, not {' x '.join(map(str, data.size))}: give --image_size"
        )
    return data


def shape_in_words(data: Data) -> str:
    """Of what the network takes."""
    return f"vectors of {data.train.channels}" if data.train.is_vectors else " x ".join(map(str, (*data.size, data.train.channels)))


def augmentation(config: SelaConfig) -> Augmentation:
    """The settings that are strengths of the training views."""
    return Augmentation(**{name: getattr(config, name) for name in Augmentation._fields})


def network(
    config: SelaConfig, image_shape: list[int], mean: list[float], variance: list[float], *, weights: str = ""
) -> keras.Model:
    """The network that the settings describe, for images [height, width, channels], or vectors [values], of this mean and variance.

    Raises:
        ValueError: the images are too small for it, or the file `weights` is not for it.
    """
    return build_model(
        config.backbone,
        image_shape=image_shape,
        num_heads=config.num_heads,
        num_clusters=config.num_clusters,
        width=config.width,
        hidden_units=config.hidden_units,
        mean=mean,
        variance=variance,
        synchronized=config.sync_batch_norm,
        dtype=None if config.mixed_precision == "none" else f"mixed_{config.mixed_precision}",
        weights=weights,
    )


def label_table(config: SelaConfig, data: Data, strategy: tf.distribute.Strategy) -> LabelTable:
    """The labels that training starts with, at random or another run's, on every device of the strategy.

    Raises:
        SourceError: that run's are not of these images.
    """
    initial = None
    if config.labels_from:
        initial = read_run_labels(config.labels_from, data.train, config.num_heads, config.num_clusters)
    with strategy.scope():
        return LabelTable(config.num_heads, config.num_clusters, len(data.train), seed=config.seed, initial=initial)


def training_views(
    config: SelaConfig, data: Data, *, batch_size: int, first_step: int, last_step: int, replicas: int = 1
) -> tf.data.Dataset:
    """What the steps from `first_step` up to, not including, `last_step` train on, in batches that so many replicas share."""
    batches = training_batches(
        data.train,
        size=data.size,
        augmentation=augmentation(config),
        batch_size=batch_size,
        seed=config.seed,
        first_step=first_step,
        last_step=last_step,
    )
    if not config.rotation:
        return batches
    return with_rotations(batches, share=config.rotation_share, replicas=replicas)


def first_network(config: SelaConfig, data: Data, strategy: tf.distribute.Strategy) -> keras.Model:
    """The network before its first step, the same for the same seed."""
    keras.utils.set_random_seed(config.seed)
    shape = [*data.size, data.train.channels]
    with strategy.scope():
        return network(config, shape, data.mean.tolist(), data.variance.tolist(), weights=config.backbone_weights)


def compiled_model(config: SelaConfig, data: Data, labels: LabelTable, strategy: tf.distribute.Strategy) -> keras.Model:
    """The network before its first step, with what trains it."""
    model = first_network(config, data, strategy)
    loss: Any = SelfLabelLoss(labels)
    with strategy.scope():
        if config.rotation:
            model = with_rotation_head(model)
            loss = {"heads": loss, "rotation": keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
        optimizer: keras.optimizers.Optimizer = CoupledSGD(
            learning_rate_schedule(
                config.learning_rate,
                schedule=config.lr_schedule,
                epochs=config.epochs,
                steps_per_epoch=len(data.train) // config.batch_size,
                drops=config.lr_drops,
            ),
            momentum=config.momentum,
            coupled_weight_decay=config.weight_decay,
        )
        if config.mixed_precision == "float16":
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        optimizer.build(model.trainable_variables)
        model.compile(optimizer, loss=loss, jit_compile=False)
    replicas = strategy.num_replicas_in_sync
    if config.rotation and replicas > 1:
        # of several losses Keras makes the trackers when they are first used, which within a distributed step is too late
        views = training_views(config, data, batch_size=replicas, first_step=0, last_step=2, replicas=replicas)
        model.evaluate(views, steps=1, verbose=0)
    return model
