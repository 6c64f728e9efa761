"""The work of `python -m sela_tf.probe`: probes of finished runs, and their mean and confidence interval over seeds."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sela_tf.commands.other_run import OneRun, compare_runs
from sela_tf.commands.outputs import only_writer
from sela_tf.compat.activity import Activity
from sela_tf.data.augment import Augmentation
from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.left_out import write_left_out
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.splits import match_input
from sela_tf.evaluation.kmeans import kmeans_clusters
from sela_tf.evaluation.knn import knn_accuracy
from sela_tf.evaluation.metrics import evaluate_labels
from sela_tf.evaluation.outputs import network_outputs
from sela_tf.evaluation.probes import ProbeSchedule, ProbeTask, logistic_probes, sgd_probes
from sela_tf.evaluation.protocol import EvaluationImages, EvaluationProtocol, evaluation_images, evaluation_protocol
from sela_tf.files.atomic import write_whole
from sela_tf.models.build import stage_names
from sela_tf.models.inference import BatchedInference
from sela_tf.models.layer_names import EMBEDDING
from sela_tf.runs.flagfile import read_config
from sela_tf.runs.names import PROBES, PROBES_LEFT_OUT
from sela_tf.runs.network import load_run, read_description
from sela_tf.settings.commands import ProbeConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.paths import absolute_cache, absolute_path, absolute_source, refuse_unwritable
from sela_tf.settings.training import SelaConfig
from sela_tf.training.devices import prepare_devices
from sela_tf.training.images import Data, load_data, tell
from sela_tf.training.initial_state import first_network
from sela_tf.training.optimizer import CoupledSGD, learning_rate_schedule


def probe_run(settings: ProbeConfig, workdir: str | os.PathLike[str] | None = None) -> dict[str, Any]:
    """Probes the network of a finished run, and writes probes.json into the directory of the run.

    Args:
        settings: settings of the command.
        workdir: directory of the run; None for the first one that the settings name.

    Returns:
        The contents of probes.json.

    Raises:
        ConfigError: there is no finished run, no such stage, or no classes to fit probes to, or another command is writing probes.json.
        SourceError: the images cannot be loaded.
        StorageError: the disk is full.
    """
    workdir = settings.workdir[0] if workdir is None else workdir
    directory = pathlib.Path(absolute_path(str(workdir)))
    refuse_unwritable("workdir", directory)
    # Without a run, there is no directory to lock.
    read_config(workdir)
    left_out = directory / PROBES_LEFT_OUT
    with only_writer("workdir", directory / PROBES, left_out):
        results = probe(settings, workdir, left_out=left_out if settings.dataset or settings.eval_dataset else None)
        write_whole(directory / PROBES, json.dumps(results, indent=1) + "\n")
    return results


def probe(settings: ProbeConfig, workdir: str | os.PathLike[str], *, left_out: pathlib.Path | None = None) -> dict[str, Any]:
    """Probes the network of a finished run, and returns what `probe_run` writes into probes.json.

    Args:
        settings: settings of the command.
        workdir: directory of the run.
        left_out: the CSV file for images that cannot be read; None for none.

    Raises:
        ValueError: there is no finished run, no such stage, or no classes to fit probes to.
    """
    strategy = prepare_devices(_config_of(settings, workdir))
    config, model, data = _load(settings, workdir, strategy)
    stages = _stages(settings, model, workdir)
    if left_out is not None:
        write_left_out(left_out, data.rejected)
    protocol, images = _images(settings, data)
    _check_enough_images(settings, data, protocol)
    results: dict[str, Any] = {}
    if settings.other_run:
        other_config, other_model, other_data = _load(settings, settings.other_run, strategy)
        one = OneRun(str(workdir), config, model, images)
        other = OneRun(settings.other_run, other_config, other_model, _images(settings, other_data)[1])
        with Activity("comparing the runs"):
            results["other_run"] = compare_runs(one, other, strategy)
    if images.have_classes:
        with Activity("probing the trained network"):
            results["trained"] = _metrics(settings, model, stages, data, images, strategy)
    results |= {
        "num_held_out_images": protocol.held_out_size,
        "protocol": _protocol_text(settings, protocol) if images.have_classes else f"{protocol.held_out_words}.",
        "config": dataclasses.asdict(config),
        "settings": {name: value for name, value in dataclasses.asdict(settings).items() if name != "workdir"},
    }
    if settings.untrained and images.have_classes:
        untrained = first_network(config, read_description(workdir), strategy)
        views = inference_batches(images.training, size=data.size, batch_size=EVALUATION_BATCH)
        BatchedInference(untrained, strategy).fill_moving_statistics(views)
        with Activity("probing the untrained network"):
            results["untrained"] = _metrics(settings, untrained, stages, data, images, strategy)
    return results


def _load(
    settings: ProbeConfig, workdir: str | os.PathLike[str], strategy: tf.distribute.Strategy
) -> tuple[SelaConfig, keras.Model, Data]:
    """Loads the settings of a run, its network, and the images in the shape that the network takes.

    Raises:
        ConfigError: there is no finished run, or a set has no classes and there is no other run to compare with.
    """
    config = _config_of(settings, workdir)
    with strategy.scope():
        model = load_run(workdir)
    shape = model.input.shape[1:]
    # The network sees the images of another data set at its own size.
    if len(shape) == 3:
        config = dataclasses.replace(config, image_size=shape[0])
    data = load_data(config, read_description(workdir).pixel_rules)._replace(size=tuple(shape[:-1]))
    data = data._replace(train=match_input(data.train, shape), held_out=match_input(data.held_out, shape))
    for images in (data.train, data.held_out):
        if images.classes is None and not settings.other_run:
            raise ConfigError(
                f"{images.full_name} has no class labels, which probes need: name another `dataset` or `eval_dataset`, or another run of "
                "these images with `other_run`, whose clusters are compared without classes"
            )
    return config, model, data


def _images(settings: ProbeConfig, data: Data) -> tuple[EvaluationProtocol, EvaluationImages]:
    """Returns the protocol of the settings, and the images that it chooses."""
    protocol = evaluation_protocol(settings.evaluate, len(data.train), len(data.held_out), seed=settings.seed)
    return protocol, evaluation_images(data.train, data.held_out, data.size, protocol)


def _check_enough_images(settings: ProbeConfig, data: Data, protocol: EvaluationProtocol) -> None:
    """Checks that there are enough images for the settings.

    Raises:
        ConfigError: there are fewer held-out images than clusters of k-means, or fewer training images than a batch of SGD.
    """
    if settings.kmeans and max(settings.kmeans) > protocol.held_out_size:
        raise ConfigError(f"`kmeans={max(settings.kmeans)}` exceeds the {protocol.held_out_size} held-out images: choose fewer")
    if settings.protocol == "sgd" and settings.batch_size > len(data.train):
        raise ConfigError(f"`batch_size={settings.batch_size}` exceeds the {len(data.train)} training images: choose a smaller one")


def _config_of(settings: ProbeConfig, workdir: str | os.PathLike[str]) -> SelaConfig:
    """Returns the settings of the run, with the images that the command asks for."""
    config = read_config(workdir)
    if settings.dataset:
        config = dataclasses.replace(
            config,
            dataset=absolute_source(settings.dataset, tell=tell),
            eval_dataset="",
            max_rejected=settings.max_rejected,
            class_level=settings.class_level,
        )
    if settings.eval_dataset:
        config = dataclasses.replace(
            config,
            eval_dataset=absolute_source(settings.eval_dataset, tell=tell),
            max_rejected=max(config.max_rejected, settings.max_rejected),
            class_level=config.class_level if settings.class_level == "auto" else settings.class_level,
        )
    if settings.cache_dir:
        config = dataclasses.replace(config, cache_dir=absolute_cache(settings.cache_dir))
    # A network that was trained with `imbalance` is judged on all images.
    return dataclasses.replace(config, classes="auto", imbalance="none")


def _stages(settings: ProbeConfig, model: keras.Model, workdir: str | os.PathLike[str]) -> list[str]:
    """Returns the names of the stages to probe: those of the settings; by default all maps and the embedding.

    Raises:
        ConfigError: the network has no such stage.
    """
    known = stage_names(model)
    unknown = [stage for stage in settings.stages if stage not in known]
    if unknown:
        raise ConfigError(f"`stages={','.join(unknown)}`: no such stage. The network of {workdir} has {', '.join(known)}")
    # By default fully connected stages other than the last, which is the embedding, are left out.
    return list(settings.stages) or [name for name in known if len(model.get_layer(name).output.shape) == 4 or name == EMBEDDING]


def _metrics(
    settings: ProbeConfig,
    model: keras.Model,
    stages: Sequence[str],
    data: Data,
    images: EvaluationImages,
    strategy: tf.distribute.Strategy,
) -> dict[str, Any]:
    """Returns the metrics of one network.

    Returns:
        "knn": accuracy by k; "clustering": a list over heads by metric; "kmeans": the same by number of clusters; "linear_probe": accuracy
        by stage.
    """
    train, held_out = images.training, images.held_out
    bank = network_outputs(model, train, size=data.size, strategy=strategy).embedding
    outputs = network_outputs(model, held_out, size=data.size, strategy=strategy)
    train_classes, classes = np.asarray(train.classes), np.asarray(held_out.classes)
    metrics: dict[str, Any] = {
        "knn": {str(k): knn_accuracy(bank, train_classes, outputs.embedding, classes, k=k) for k in settings.knn},
        "clustering": evaluate_labels(outputs.clusters, classes),
        "kmeans": {str(k): evaluate_labels(kmeans_clusters(outputs.embedding, k)[np.newaxis], classes) for k in settings.kmeans},
    }
    if settings.protocol == "logistic":
        task = ProbeTask(model, stages, train, held_out, data.size, settings.values, strategy)
        return {**metrics, "linear_probe": logistic_probes(task, max_iterations=images.protocol.max_iterations)}
    task = ProbeTask(model, stages, data.train, data.held_out, data.size, settings.values, strategy)
    with strategy.scope():
        optimizer = _optimizer(settings, len(data.train))
    return {**metrics, "linear_probe": sgd_probes(task, optimizer=optimizer, schedule=_schedule(settings), seed=settings.seed)}


def _optimizer(settings: ProbeConfig, num_images: int) -> CoupledSGD:
    """Returns the optimizer of the SGD probes, with its learning rate schedule."""
    rates = learning_rate_schedule(
        settings.learning_rate,
        schedule="step",
        epochs=settings.epochs,
        steps_per_epoch=num_images // settings.batch_size,
        drops=[epoch / settings.epochs for epoch in settings.drop_epochs if epoch < settings.epochs],
    )
    return CoupledSGD(rates, momentum=settings.momentum, coupled_weight_decay=settings.weight_decay)


def _schedule(settings: ProbeConfig) -> ProbeSchedule:
    """Returns the schedule of the SGD probes. Views are cropped and flipped only."""
    views = Augmentation(
        crop_scale=settings.crop_scale,
        flip_probability=settings.flip_probability,
        brightness=0,
        contrast=0,
        saturation=0,
        hue=0,
        grayscale_probability=0,
    )
    return ProbeSchedule(settings.epochs, settings.batch_size, views, settings.ten_crop)


def _protocol_text(settings: ProbeConfig, protocol: EvaluationProtocol) -> str:
    """Returns the protocol of the metrics in words, for probes.json."""
    said = (
        f"{protocol.held_out_words}; knn: embedding, cosine, votes weighted exp(similarity / .1), among {protocol.training_words}, "
        "clean view; clustering: plain argmax of each head; "
        + ("kmeans: scikit-learn's, the best of ten starts, on the embedding of the held-out images; " if settings.kmeans else "")
        + f"linear_probe: maps max-pooled to at most about {settings.values} values; "
    )
    if settings.protocol == "logistic":
        solver = f"scikit-learn's logistic regression{protocol.solver_words}"
        return said + f"{solver} on the standardised features of the clean view."
    if protocol.kind == "sampled":
        said += f"on all {protocol.num_training} training and {protocol.num_held_out} held-out images; "
    return said + (
        f"batch normalisation and a linear layer, {settings.epochs} epochs of SGD, learning rate {settings.learning_rate:g} divided by "
        f"10 after {', '.join(map(str, settings.drop_epochs)) or 'no'} epochs, momentum {settings.momentum:g}, weight decay "
        f"{settings.weight_decay:g}, batch {settings.batch_size}, random resized crops of at least {settings.crop_scale:g}, flipped with "
        f"probability {settings.flip_probability:g}; " + ("mean over ten crops." if settings.ten_crop else "clean view.")
    )


def check_same_settings(workdirs: Sequence[str]) -> None:
    """Checks that runs have the same settings, so that a mean over them is a mean over seeds.

    The settings `seed`, `labels_from` and `continue_from`, and those that do not change the training, may differ.

    Raises:
        ConfigError: other settings differ.
    """
    free = {
        "seed",
        "labels_from",
        "continue_from",
        *(field.name for field in dataclasses.fields(SelaConfig) if field.metadata["may_change"]),
    }
    first, *others = ((workdir, dataclasses.asdict(read_config(workdir))) for workdir in workdirs)
    for name, config in others:
        different = [
            f"`{key}` is {value!r} in {first[0]} and {config[key]!r} in {name}"
            for key, value in first[1].items()
            if value != config[key] and key not in free
        ]
        if different:
            raise ConfigError(f"`workdir` names runs that differ in more than their seed: {'; '.join(different)}")
