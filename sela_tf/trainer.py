"""The recipe, top to bottom: `run(config, workdir)`."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sela_tf import checkpoint, flags
from sela_tf.config import ConfigError, SelaConfig
from sela_tf.data.augment import Augmentation
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import channel_statistics, inference_batches, training_batches
from sela_tf.data.sources import hold_out, load_source, match_channels, match_classes
from sela_tf.evaluation.monitors import KNNMonitor
from sela_tf.evaluation.summary import evaluate_chance, evaluate_labels, evaluate_network
from sela_tf.loop import Clock, Progress, signals_noted, train
from sela_tf.models import BACKBONES, EMBEDDING, build_model
from sela_tf.models.features import read
from sela_tf.optimizer import CoupledSGD, learning_rate_schedule
from sela_tf.self_labelling.callback import SelfLabelling
from sela_tf.self_labelling.label_pass import HeadLabels
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.self_labelling.loss import SelfLabelLoss
from sela_tf.self_labelling.schedule import relabel_steps
from sela_tf.transport.sinkhorn import sinkhorn
from sela_tf.workdir import FLAGS, RESULTS, WEIGHTS, Workdir

_PASS_BATCH = 1000
"""Images of a batch of a label pass: the reference's number, large enough for steady batch statistics."""


class Data(NamedTuple):
    """The images of a run, and what the network has to know of them."""

    train: ImageSet
    held_out: ImageSet
    size: tuple[int, int]
    mean: np.ndarray
    variance: np.ndarray


def run(config: SelaConfig, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Trains as `config` says, or continues the run in `workdir`; returns what results.json then holds.

    Raises:
        ValueError: the settings, the data or the directory will not do (ConfigError, SourceError), or training diverged.
        Interrupted: on SIGINT or SIGTERM, after saving.
    """
    config = config.absolute()
    strategy = prepare_devices(config)
    check_before_loading(config, strategy)
    directory = Workdir(workdir, config)
    data = load_data(config)
    steps_per_epoch = len(data.train) // config.batch_size
    last_step = config.epochs * steps_per_epoch

    labels = LabelTable(config.num_heads, config.num_clusters, len(data.train), seed=config.seed)
    model = compiled_model(config, data, labels, strategy)
    fingerprint = data.train.fingerprint()
    step = _continue_from(directory, config, model, labels, fingerprint)
    if step >= last_step and directory.is_finished:
        print(f"This run is finished ({config.epochs} epochs). More: a larger --epochs.", flush=True)
        return directory.read_results()
    shape = " x ".join(map(str, (*data.size, data.train.channels)))
    print(
        f"{len(data.train)} training images, {len(data.held_out)} held out, {shape}; "
        f"{model.count_params():,} parameters; {steps_per_epoch} steps an epoch on {strategy.num_replicas_in_sync} device(s)"
        + (f"; continues at step {step}" if step else ""),
        flush=True,
    )
    directory.start(step)

    views = augmentation(config)
    label_view = views if config.label_view == "training" else None
    labelling = SelfLabelling(
        labels,
        lambda number: inference_batches(
            data.train, size=data.size, batch_size=_PASS_BATCH, seed=config.seed, augmentation=label_view, number=number
        ),
        relabel_steps=relabel_steps(
            config.num_relabellings, epochs=config.epochs, steps_per_epoch=steps_per_epoch, spacing=config.relabel_spacing
        ),
        assign=functools.partial(
            sinkhorn, lam=config.lam, tolerance=config.transport_tolerance, max_iterations=config.transport_max_iterations
        ),
        batch_statistics=config.label_view == "training",
        log=functools.partial(_log_relabelling, directory),
    )
    batches = training_batches(
        data.train,
        size=data.size,
        augmentation=views,
        batch_size=config.batch_size,
        seed=config.seed,
        first_step=step,
        last_step=last_step,
    )
    clock = Clock()
    callbacks = [labelling, *_monitors(config, data), Progress(config.epochs, config.batch_size, directory, clock)]

    def save(step: int) -> None:
        meta = {"data_fingerprint": fingerprint, "num_examples": len(data.train)}
        directory.flush()
        checkpoint.save(directory.checkpoints, step, _state(model, labels), meta, keep=config.keep_checkpoints)

    with signals_noted() as stop:
        train(
            model,
            batches,
            strategy=strategy,
            xla=config.xla,
            callbacks=callbacks,
            clock=clock,
            first_step=step,
            last_step=last_step,
            steps_per_epoch=steps_per_epoch,
            log_every_steps=config.log_every_steps,
            save=save,
            stop=stop,
        )
    return _finish(directory, config, data, model, labels, labelling, strategy, last_step)


def load_run(workdir: str | os.PathLike[str]) -> keras.Model:
    """The trained network of a finished run: images [B, H, W, C] in [0, 255] to logits [B, T, K].

    Its layers are named: "embedding" is the representation, "heads" the MultiHead layer.

    Raises:
        ConfigError: the directory holds no finished run.
    """
    path = pathlib.Path(workdir).expanduser()
    if not (path / FLAGS).exists():
        raise ConfigError(f"{str(path)!r} holds no run (no {FLAGS})")
    if not (path / RESULTS).exists():
        raise ConfigError(f"the run in {str(path)!r} is not finished: repeat its command to continue it")
    config = flags.from_flagfile(path / FLAGS)
    data = json.loads((path / RESULTS).read_text())["data"]
    model = _network(config, data["image_shape"], data["mean"], data["variance"])
    model.load_weights(path / WEIGHTS)
    return model


# -- what a run is made of ---------------------------------------------------------------------------------------------------------


def prepare_devices(config: SelaConfig) -> tf.distribute.Strategy:
    """Seeds, determinism, and a strategy over all devices that are visible."""
    try:
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        if config.logical_cpus:
            cpu = tf.config.list_physical_devices("CPU")[0]
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
    if config.backbone not in BACKBONES:
        raise ConfigError(f"--backbone must be one of {', '.join(BACKBONES)}. Received: {config.backbone!r}")
    if config.xla and replicas > 1:
        raise ConfigError(f"--xla works on one device only, and {replicas} are visible: leave it off, or hide devices")
    if config.batch_size % replicas:
        raise ConfigError(f"--batch_size={config.batch_size} cannot be shared equally by {replicas} devices")


def load_data(config: SelaConfig) -> Data:
    """The images for training, those held out, and what the network has to know of them.

    Raises:
        ValueError: they cannot be loaded (SourceError), or the settings do not fit them (ConfigError).
    """
    options: dict[str, Any] = {
        "data_dir": config.data_dir,
        "download": config.download,
        "use_classes": config.classes == "auto",
        "skip_bad_images": config.skip_bad_images,
        "memory_limit": int(config.memory_limit * 2**30),
    }
    splits = load_source(config.dataset, **options)
    for line in splits.report:
        print(line, flush=True)
    if config.eval_dataset:
        other = load_source(config.eval_dataset, **options)
        train, held_out = splits.train, other.eval or other.train
    elif splits.eval is not None:
        train, held_out = splits.train, splits.eval
    else:
        train, held_out = hold_out(splits.train, config.eval_fraction)
    if config.num_clusters > len(train):
        raise ConfigError(f"--num_clusters={config.num_clusters} exceeds the {len(train)} training images: choose fewer")
    if config.batch_size > len(train):
        raise ConfigError(f"--batch_size={config.batch_size} exceeds the {len(train)} training images: choose a smaller one")
    if config.image_size:
        size = (config.image_size, config.image_size)
    elif train.image_size is not None:
        size = (int(train.image_size[0]), int(train.image_size[1]))
    else:
        raise ConfigError(
            f"the images of --dataset={config.dataset} have many sizes: say which one the network sees with --image_size"
        )
    if min(size) < 2:
        raise ConfigError(f"the images of --dataset={config.dataset} are {size[0]} x {size[1]}: give a larger --image_size")
    mean, variance = channel_statistics(train, size=size, seed=config.seed)
    return Data(train, match_classes(match_channels(held_out, train.channels), train), size, mean, variance)


def augmentation(config: SelaConfig) -> Augmentation:
    """The settings that are strengths of the training views."""
    return Augmentation(**{name: getattr(config, name) for name in Augmentation._fields})


def _network(config: SelaConfig, image_shape: list[int], mean: list[float], variance: list[float]) -> keras.Model:
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
    )


def compiled_model(config: SelaConfig, data: Data, labels: LabelTable, strategy: tf.distribute.Strategy) -> keras.Model:
    """The network before its first step, the same for the same seed."""
    keras.utils.set_random_seed(config.seed)
    with strategy.scope():
        model = _network(config, [*data.size, data.train.channels], data.mean.tolist(), data.variance.tolist())
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
        model.compile(optimizer, loss=SelfLabelLoss(labels), jit_compile=False)
    return model


def _monitors(config: SelaConfig, data: Data) -> list[keras.callbacks.Callback]:
    """KNN at the end of each epoch, where there are classes to vote for."""
    if data.train.classes is None or data.held_out.classes is None or not config.monitor_examples:
        return []
    chosen = np.sort(np.random.default_rng(config.seed).permutation(len(data.train))[: config.monitor_examples])
    bank = data.train.take(chosen)
    return [
        KNNMonitor(
            EMBEDDING,
            inference_batches(bank, size=data.size, batch_size=_PASS_BATCH),
            data.train.classes[chosen],
            inference_batches(data.held_out, size=data.size, batch_size=_PASS_BATCH),
            data.held_out.classes,
        )
    ]


def _log_relabelling(directory: Workdir, step: int, outcome: list[HeadLabels]) -> None:
    for head in outcome:
        directory.write_metrics("relabel", step, {"head": head.head, **head.metrics})
        directory.write_timings("relabel", step, {"head": head.head, "seconds": head.seconds})


# -- state and results -------------------------------------------------------------------------------------------------------------


def _state(model: keras.Model, labels: LabelTable) -> dict[str, np.ndarray]:
    """Everything that training changes."""
    variables = {"model": model.variables, "optimizer": model.optimizer.variables}
    arrays = {f"{kind}/{i:04d}": read(value) for kind, values in variables.items() for i, value in enumerate(values)}
    return {**arrays, **{f"table/{name}": value for name, value in labels.state().items()}}


def _continue_from(directory: Workdir, config: SelaConfig, model: keras.Model, labels: LabelTable, fingerprint: str) -> int:
    """Puts the newest checkpoint's state back, if there is one; returns the steps that were taken."""
    saved, passed_over = checkpoint.load_newest(directory.checkpoints)
    for line in passed_over:
        print(f"checkpoint passed over: {line}", flush=True)
    if saved is None:
        return 0
    if saved.meta["data_fingerprint"] != fingerprint:
        raise ConfigError(
            f"--workdir={directory.path} was trained on {saved.meta['num_examples']} images, and those of "
            f"--dataset={config.dataset} ({labels.num_examples}) are not the same any more: restore them, or name another directory"
        )
    for kind, variables in (("model", model.variables), ("optimizer", model.optimizer.variables)):
        for i, variable in enumerate(variables):
            variable.assign(saved.arrays[f"{kind}/{i:04d}"])
    labels.restore({name.removeprefix("table/"): value for name, value in saved.arrays.items() if name.startswith("table/")})
    return saved.step


def _finish(
    directory: Workdir,
    config: SelaConfig,
    data: Data,
    model: keras.Model,
    labels: LabelTable,
    labelling: SelfLabelling,
    strategy: tf.distribute.Strategy,
    last_step: int,
) -> dict[str, Any]:
    """One more transport on the final weights, the figures, and the files that others read."""
    training_labels = labels.labels
    labelling.relabel(last_step)
    model.save_weights(directory.path / WEIGHTS)
    names = {} if data.train.names is None else {"names": np.array(data.train.names)}
    directory.write_labels(
        {
            "labels": labels.labels,
            "training_labels": training_labels,
            "potentials": labels.potentials,
            "lam": np.array(config.lam, np.float32),
            "num_changes": labels.num_changes,
            "data_fingerprint": np.array(data.train.fingerprint()),
            **names,
        }
    )
    untrained = compiled_model(config, data, labels, strategy)
    results = {
        "trained": evaluate_network(model, data.train, data.held_out, size=data.size, strategy=strategy),
        "untrained": evaluate_network(
            untrained, data.train, data.held_out, size=data.size, strategy=strategy, batch_statistics=True
        ),
        "chance": evaluate_chance(data.held_out.classes, config.num_clusters, seed=config.seed),
        "training_labels": evaluate_labels(labels.labels, data.train.classes),
        "config": dataclasses.asdict(config),
        "data": {
            "num_training_images": len(data.train),
            "num_held_out_images": len(data.held_out),
            "image_shape": [*data.size, data.train.channels],
            "mean": data.mean.tolist(),
            "variance": data.variance.tolist(),
        },
    }
    directory.write_results(results)
    return results
