"""The work of `python -m sela_tf.probe`: probes of finished runs, and their mean and confidence interval over seeds."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from scipy import stats

from sela_tf.data.augment import Augmentation
from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.pixel_rules import PixelRules
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
from sela_tf.reporting.markdown import markdown
from sela_tf.reporting.metric_labels import CLUSTER_LABELS, METRIC_LABELS
from sela_tf.runs.names import PROBES
from sela_tf.runs.network import load_run, read_description
from sela_tf.runs.workdir import read_config
from sela_tf.settings.commands import ProbeConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.paths import absolute_cache, absolute_path, absolute_source, refuse_unwritable
from sela_tf.settings.training import SelaConfig
from sela_tf.training.devices import prepare_devices
from sela_tf.training.images import Data, load_data
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
        ValueError: there is no finished run, no such stage, or no classes to fit probes to.
    """
    workdir = settings.workdir[0] if workdir is None else workdir
    refuse_unwritable("workdir", pathlib.Path(absolute_path(str(workdir))))
    results = probe(settings, workdir)
    write_whole(pathlib.Path(workdir).expanduser() / PROBES, json.dumps(results, indent=1) + "\n")
    return results


def probe(settings: ProbeConfig, workdir: str | os.PathLike[str]) -> dict[str, Any]:
    """Probes the network of a finished run, and returns what `probe_run` writes into probes.json.

    Args:
        settings: settings of the command.
        workdir: directory of the run.

    Raises:
        ValueError: there is no finished run, no such stage, or no classes to fit probes to.
    """
    config = _config_of(settings, workdir)
    strategy = prepare_devices(config)
    with strategy.scope():
        model = load_run(workdir)
    shape = model.input.shape[1:]
    stages = _stages(settings, model, workdir)
    # The network sees the images of another data set at its own size.
    if len(shape) == 3:
        config = dataclasses.replace(config, image_size=shape[0])
    data = _load_matching(config, shape, read_description(workdir).pixel_rules)
    protocol = evaluation_protocol(settings.evaluate, len(data.train), len(data.held_out), seed=settings.seed)
    _check_enough_images(settings, data, protocol)
    images = evaluation_images(data.train, data.held_out, data.size, protocol)
    results: dict[str, Any] = {
        "trained": _metrics(settings, model, stages, data, images, strategy),
        "num_held_out_images": protocol.held_out_size,
        "protocol": _protocol_text(settings, protocol),
        "config": dataclasses.asdict(config),
        "settings": {name: value for name, value in dataclasses.asdict(settings).items() if name != "workdir"},
    }
    if settings.untrained:
        untrained = first_network(config, read_description(workdir), strategy)
        views = inference_batches(images.training, size=data.size, batch_size=EVALUATION_BATCH)
        BatchedInference(untrained, strategy).fill_moving_statistics(views)
        results["untrained"] = _metrics(settings, untrained, stages, data, images, strategy)
    return results


def _load_matching(config: SelaConfig, shape: Sequence[int], rules: PixelRules) -> Data:
    """Loads training and held-out images in the shape that the network takes, by its pixel rules.

    Raises:
        ConfigError: a set has no classes.
    """
    data = load_data(config, rules)._replace(size=tuple(shape[:-1]))
    data = data._replace(train=match_input(data.train, shape), held_out=match_input(data.held_out, shape))
    for images in (data.train, data.held_out):
        if images.classes is None:
            raise ConfigError(
                f"{images.full_name} has no class labels, which probes need: name another `dataset` or `eval_dataset`"
            )
    return data


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
        config = dataclasses.replace(config, dataset=absolute_source(settings.dataset), eval_dataset="")
    if settings.eval_dataset:
        config = dataclasses.replace(config, eval_dataset=absolute_source(settings.eval_dataset))
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


def interval(values: Sequence[float], *, confidence: float = 0.95) -> float:
    """Returns half the width of Student's confidence interval of the mean of `values`; NaN for a single value."""
    if len(values) < 2:
        return float("nan")
    return float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * stats.sem(values))


def check_same_settings(workdirs: Sequence[str]) -> None:
    """Checks that runs have the same settings, so that a mean over them is a mean over seeds.

    The settings `seed` and `labels_from`, and those that do not change the training, may differ.

    Raises:
        ConfigError: other settings differ.
    """
    free = {"seed", "labels_from", *(field.name for field in dataclasses.fields(SelaConfig) if field.metadata["may_change"])}
    first, *others = ((workdir, dataclasses.asdict(read_config(workdir))) for workdir in workdirs)
    for name, config in others:
        different = [
            f"`{key}` is {value!r} in {first[0]} and {config[key]!r} in {name}"
            for key, value in first[1].items()
            if value != config[key] and key not in free
        ]
        if different:
            raise ConfigError(f"`workdir` names runs that differ in more than their seed: {'; '.join(different)}")


def probes_table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Returns a Markdown table of the mean over runs, with its confidence interval where there are several.

    Args:
        runs: contents of their probes.json.
    """
    columns = [name for name in ("trained", "untrained") if name in runs[0]]
    rows = [["held-out images", *columns]]
    for kind, label in (
        ("knn", f"{METRIC_LABELS['knn'].short_label}, k = {{}}"),
        ("linear_probe", f"{METRIC_LABELS['linear_probe'].label}, {{}}"),
    ):
        for key in runs[0]["trained"][kind]:
            rows.append([label.format(key), *(mean_and_interval([run[column][kind][key] for run in runs]) for column in columns)])
    for key, label in CLUSTER_LABELS.items():
        means = [[float(np.mean(run[column]["clustering"][key])) for run in runs] for column in columns]
        rows.append([f"{label}, mean of heads" if key == "nmi" else label, *map(mean_and_interval, means)])
    for k in runs[0]["trained"]["kmeans"]:
        numbers = [[run[column]["kmeans"][k]["nmi"][0] for run in runs] for column in columns]
        rows.append([f"{CLUSTER_LABELS['nmi']}, k-means on the embedding, {k} clusters", *map(mean_and_interval, numbers)])
    return markdown(rows[0], rows[1:])


def mean_and_interval(values: Sequence[float]) -> str:
    """Returns the mean over seeds, "0.123 ± 0.004" with half its 95 % confidence interval, or "0.123" for a single value."""
    mean = f"{np.mean(values):.3f}"
    return mean if len(values) < 2 else f"{mean} ± {interval(values):.3f}"
