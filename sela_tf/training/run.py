"""The recipe, top to bottom: `run(config, workdir)`."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from sela_tf.cli.signals import signals_noted
from sela_tf.compat.activity import Activity
from sela_tf.compat.releases import RELEASE
from sela_tf.data.left_out import write_left_out
from sela_tf.data.sources.python import ImagesFromPython, images_given
from sela_tf.evaluation.outputs import EvaluationOutputs
from sela_tf.reporting.changes import changes_table
from sela_tf.reporting.tables import results_table
from sela_tf.runs import checkpoint
from sela_tf.runs.checkpoint import arrays_under
from sela_tf.runs.cluster_names import kept_names
from sela_tf.runs.flagfile import given_by
from sela_tf.runs.labels import read_labels, write_labels
from sela_tf.runs.names import GALLERIES, LABELS, LEFT_OUT, METRICS, PAGE, PICTURE, RESULTS, TENSORBOARD, WEIGHTS
from sela_tf.runs.network import describe_older_run, load_run, save_network
from sela_tf.runs.workdir import Workdir
from sela_tf.self_labelling.label_pass import HeadLabels
from sela_tf.settings.fields import CHOSEN, ConfigError, default_of
from sela_tf.settings.train_options import TrainOptions
from sela_tf.settings.training import SelaConfig
from sela_tf.training.cost import fit_to_minutes, measured_rates, parts_of_run, time_in_words
from sela_tf.training.devices import check_before_loading, prepare_devices
from sela_tf.training.earlier_run import Continuation
from sela_tf.training.evaluation import judge, outputs_of_run
from sela_tf.training.experiment import Experiment
from sela_tf.training.images import tell
from sela_tf.training.initial_state import check_backbone_weights
from sela_tf.training.loop import TrainingLoop
from sela_tf.training.monitoring import log_first_labels
from sela_tf.training.progress import Progress
from sela_tf.training.report import write_report
from sela_tf.training.resuming import newest_checkpoint, put_back


def run(
    data: SelaConfig | str | ImagesFromPython,
    workdir: str | os.PathLike[str],
    *,
    experiment_of: type[Experiment] = Experiment,
    minutes: float = 0.0,
    **settings: Any,
) -> dict[str, Any]:
    """Trains on images, or continues the run in `workdir`, or completes what it lacks; returns what results.json then holds.

    Settings that are not given are chosen from the images; those of a run that is continued stay as they are. The choices, the course of
    the training and the verdict are printed. The network and its description are written right after training, then the labels of the last
    transport, then the verdict, which may fail: the same call again completes what is missing.

    Args:
        data: the name of a source, such as "folder:/images" or "cifar10"; images uint8 `[N, H, W]` or `[N, H, W, C]`, or vectors float
            `[N, D]`, or a pair of these and class labels `[N]`; a finite tf.data.Dataset of images, or of pairs of image and class
            label. Or all settings, as a SelaConfig.
        workdir: the directory of the run.
        experiment_of: makes the experiment, for those who study other ways to label or to draw images.
        minutes: the time that the run may take, by which its `epochs` are chosen; 0 for no limit.
        settings: the settings by name, those of SelaConfig.

    Raises:
        ValueError: the settings, the data or the directory cannot be used (ConfigError, SourceError), or training diverged.
        TypeError: a setting is unknown.
        TrainingInterrupted: on SIGINT or SIGTERM, after saving.
    """
    asked: dict[str, Any] = {"workdir": workdir, "minutes": minutes}
    place = TrainOptions(**asked)
    workdir, minutes = place.workdir, place.minutes
    if not isinstance(data, SelaConfig) and "dataset" in settings:
        raise ConfigError(f"`dataset={settings['dataset']}` is given beside other images: leave one of them out")
    if isinstance(data, SelaConfig):
        results = _run({**given_by(data), **settings}, workdir, experiment_of, minutes)
    elif isinstance(data, str):
        results = _run({"dataset": data, **settings}, workdir, experiment_of, minutes)
    else:
        limit = settings.get("memory_limit", default_of(SelaConfig, "memory_limit"))
        limit = SelaConfig(dataset="python:", memory_limit=limit).memory_limit
        with images_given(data, memory_limit=int(limit * 2**30), tell=tell) as name:
            results = _run({"dataset": name, **settings}, workdir, experiment_of, minutes)
    changes = f"\n\n{changes_table(results['continued'])}" if "continued" in results else ""
    print(f"\n{results_table(results)}{changes}\n\nThe run lies in {workdir}: {_what_lies_in(pathlib.Path(workdir))}", flush=True)
    return results


def _what_lies_in(workdir: pathlib.Path) -> str:
    """Returns what is worth a look, as far as it is there."""
    shown = (PAGE, RESULTS, PICTURE, f"{GALLERIES}/", LABELS, WEIGHTS, METRICS, f"{TENSORBOARD}/")
    return ", ".join(name for name in shown if (workdir / name).exists())


def _run(
    given: Mapping[str, Any], workdir: str | os.PathLike[str], experiment_of: type[Experiment], minutes: float
) -> dict[str, Any]:
    began = time.perf_counter()
    directory = Workdir(workdir, given)
    config = directory.config
    if minutes and directory.previous is None and config.epochs is not CHOSEN:
        raise ConfigError(f"`minutes={minutes:g}` chooses the epochs, and `epochs={config.epochs}` is given: leave one of them out")
    strategy = prepare_devices(config)
    check_before_loading(config, strategy)
    if directory.is_finished:
        print(f"This run is finished ({config.epochs} epochs). More: a larger `epochs`.", flush=True)
        return directory.read_results()
    saved = newest_checkpoint(directory)
    state: dict[str, Any] = {"begins": saved is None}
    if saved is None:
        check_backbone_weights(config)
    else:
        state["continuation"] = Continuation.of_state(arrays_under("continuation", saved.arrays))
    experiment = experiment_of(config, strategy, **state)
    rates = None
    counts = {"num_train": len(experiment.data.train), "num_held_out": len(experiment.data.held_out)}
    if minutes and directory.previous is not None:
        tell(
            f"`minutes={minutes:g}` is for a new run: this one keeps its {config.epochs} epochs, unless a larger `epochs` is given"
        )
    elif minutes:
        are_given = config.num_relabellings is not CHOSEN
        with Activity("measuring the speed"):
            rates = measured_rates(experiment)
        fit = fit_to_minutes(
            minutes,
            experiment.config,
            parts_of_run(experiment, rates, **counts),
            relabellings_are_given=are_given,
            spent=time.perf_counter() - began,
        )
        tell(
            f"`minutes={minutes:g}`: `epochs={fit.epochs}` of {experiment.steps_per_epoch} steps, `num_relabellings={fit.num_relabellings}`"
        )
        experiment = experiment_of(fit, strategy, data=experiment.data, **state)
    step = put_back(directory, experiment, saved)
    print(experiment.in_words(step), flush=True)
    if step < experiment.last_step:
        if rates is None:
            with Activity("measuring the speed"):
                rates = measured_rates(experiment)
        tell(time_in_words(parts_of_run(experiment, rates, **counts), done=step / experiment.last_step))
        if not tf.config.list_logical_devices("GPU"):
            # The views are made by the processors that train.
            experiment.clock.drawing_each = rates.batch_drawn
    for line in directory.changes():
        print(line, flush=True)
    describe_older_run(directory.path)
    try:
        directory.start(step, experiment.config)
        if write_left_out(directory.path / LEFT_OUT, experiment.data.rejected):
            tell(f"images that were left out: {directory.path / LEFT_OUT}")
        if directory.has_results:
            # Only the report is missing.
            results, outputs = directory.read_results(), _outputs_again(experiment, directory)
        else:
            _train(experiment, directory, step)
            weights = save_network(directory.path, experiment.model, experiment.description, step=experiment.last_step)
            final = _last_transport(experiment, directory, weights)
            results, outputs = _judge(experiment, final)
            directory.write_results(results)
        if experiment.config.report:
            _draw(experiment, directory, results, outputs)
    finally:
        directory.close()
    return results


def _train(experiment: Experiment, directory: Workdir, first_step: int) -> None:
    """Takes the steps that are left, and saves every `monitor_epochs` epochs and on a signal."""
    config, labels = experiment.config, experiment.labels
    meta = {"data_fingerprint": experiment.fingerprint, "num_examples": labels.num_examples, "tensorflow": RELEASE}

    def save(step: int) -> None:
        directory.flush()
        checkpoint.save(directory.checkpoints, step, experiment.state(), meta, keep=config.keep_checkpoints)

    callbacks = experiment.callbacks(directory)
    if first_step == 0:
        experiment.label_anew()
        log_first_labels(directory, experiment.class_agreement, labels)
    loop = TrainingLoop(
        model=experiment.model,
        strategy=experiment.strategy,
        take_step=experiment.take_step,
        steps_per_epoch=experiment.steps_per_epoch,
        log_every_steps=config.log_every_steps,
        clock=experiment.clock,
        save_epochs=config.monitor_epochs,
    )
    with signals_noted() as stop:
        loop.run(
            experiment.views(first_step, experiment.last_step),
            first_step=first_step,
            last_step=experiment.last_step,
            callbacks=[*callbacks, Progress(config.epochs, config.batch_size, config.monitor_epochs, directory, experiment.clock)],
            save=save,
            stop=stop,
        )


def _last_transport(experiment: Experiment, directory: Workdir, weights: str) -> list[HeadLabels]:
    """Labels all images once more by the final weights, and writes labels.npz; `weights` is the digest of the weights."""
    labels, train = experiment.labels, experiment.data.train
    training_labels = labels.labels
    final = experiment.labelling.relabel(experiment.last_step)
    names = {} if train.names is None else {"names": np.array(train.names)}
    if experiment.continuation is not None and experiment.continuation.cluster_names is not None:
        names["cluster_names"] = experiment.continuation.cluster_names
    write_labels(
        directory.path,
        {
            "labels": labels.labels,
            "training_labels": training_labels,
            "potentials": labels.potentials,
            "lam": np.array(final[0].assignment.lam, np.float32),
            "converged": np.array([head.assignment.converged for head in final]),
            "num_changes": labels.num_changes,
            "num_relabellings": labels.num_relabellings,
            "data_fingerprint": np.array(experiment.fingerprint),
            "source_rows": train.rows,
            "step": np.array(experiment.last_step),
            "weights_sha256": np.array(weights),
            **names,
            **kept_names(directory.path),
        },
    )
    return final


def _judge(experiment: Experiment, final: list[HeadLabels]) -> tuple[dict[str, Any], EvaluationOutputs | None]:
    """Returns the contents of results.json, and the outputs of the trained network on the images that it is judged by."""
    config, data, labels = experiment.config, experiment.data, experiment.labels
    verdict = judge(
        config,
        data,
        experiment.model,
        labels=labels.labels,
        potentials=labels.potentials,
        lam=final[0].assignment.lam,
        strategy=experiment.strategy,
    )
    results = {
        **verdict.figures,
        "transport": {name: [head.metrics[name] for head in final] for name in ("converged", "marginal_error", "num_iterations")},
        "config": dataclasses.asdict(config),
        "data": {
            "num_training_images": len(data.train),
            "num_held_out_images": len(data.held_out),
            "num_classes": None if data.train.classes is None else len(np.unique(data.train.classes)),
            "image_shape": [*data.size, data.train.channels],
            "mean": data.mean.tolist(),
            "variance": data.variance.tolist(),
        },
    }
    if experiment.continuation is not None:
        results["continued"] = experiment.continuation.changes(labels.labels)
    return results, verdict.outputs


def _outputs_again(experiment: Experiment, directory: Workdir) -> EvaluationOutputs | None:
    """The finished network at the images of its verdict; the label table gets the labels of the last transport."""
    labels = experiment.labels
    kept = read_labels(directory.path, (labels.num_heads, labels.num_clusters))
    for head in range(labels.num_heads):
        labels.assign(head, kept["labels"][head], kept["potentials"][head], float(kept["lam"]))
    # The network is read as it was written: the newest checkpoint that is whole may be an earlier one.
    with experiment.strategy.scope():
        network = load_run(directory.path)
    return outputs_of_run(
        experiment.config,
        experiment.data,
        network,
        potentials=labels.potentials,
        lam=float(kept["lam"]),
        strategy=experiment.strategy,
    )


def _draw(experiment: Experiment, directory: Workdir, results: dict[str, Any], outputs: EvaluationOutputs | None) -> None:
    try:
        with Activity("drawing the report"):
            write_report(directory, experiment.config, experiment.data, experiment.labels.labels, results, outputs)
    except Exception as error:
        # Whatever goes wrong with a picture, the training is done and must not be lost.
        print(f"WARNING: the report could not be drawn: {type(error).__name__}: {error}", flush=True)
