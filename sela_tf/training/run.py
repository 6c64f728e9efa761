"""The recipe, top to bottom: `run(config, workdir)`."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import pathlib
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from sela_tf.cli.flags import to_flagfile
from sela_tf.cli.signals import signals_noted
from sela_tf.compat.activity import Activity
from sela_tf.compat.releases import RELEASE
from sela_tf.data.left_out import write_left_out
from sela_tf.data.sources.python import ImagesFromPython, images_given
from sela_tf.files import saves
from sela_tf.files.saves import arrays_under
from sela_tf.files.storage import storage_errors
from sela_tf.reporting.changes import changes_table
from sela_tf.reporting.tables import results_table
from sela_tf.runs.flagfile import given_by, settings_of_run
from sela_tf.runs.names import GALLERIES, LABELS, LEFT_OUT, METRICS, PAGE, PICTURE, RESULTS, TENSORBOARD, WEIGHTS
from sela_tf.runs.network import describe_older_run
from sela_tf.runs.workdir import Workdir
from sela_tf.settings.fields import CHOSEN, ConfigError, default_of
from sela_tf.settings.train_options import TrainOptions
from sela_tf.settings.training import SelaConfig
from sela_tf.training.cluster import Cluster
from sela_tf.training.cost import fit_to_minutes, measured_rates, parts_of_run, time_in_words
from sela_tf.training.devices import Devices, check_before_loading, cluster_to_join, devices_of
from sela_tf.training.earlier_run import Continuation
from sela_tf.training.experiment import Experiment
from sela_tf.training.finishing import draw, finish, judge_run, outputs_again
from sela_tf.training.images import tell
from sela_tf.training.initial_state import check_backbone_weights
from sela_tf.training.loop import TrainingInterrupted, TrainingLoop
from sela_tf.training.monitoring import log_first_labels
from sela_tf.training.progress import Progress, ShownLabelling
from sela_tf.training.provenance import network_of
from sela_tf.training.resuming import check_finite, newest_checkpoint, put_back, way_out_of_divergence
from sela_tf.training.together import Start, check_same, start_together


def run(
    data: SelaConfig | str | ImagesFromPython,
    workdir: str | os.PathLike[str],
    *,
    experiment_of: type[Experiment] = Experiment,
    minutes: float = 0.0,
    restart: bool = False,
    workers_timeout: float = 600.0,
    **settings: Any,
) -> dict[str, Any]:
    """Trains on images, or continues the run in `workdir`, or completes what it lacks; returns what results.json then holds.

    Settings that are not given are chosen from the images; those of a run that is continued stay as they are. The choices, the course of
    the training and the verdict are printed. The network and its labels are written after the last transport, both or neither, then the
    verdict, which may fail: the same call again completes what is missing. A run that is stopped at any moment and called again ends with the
    same weights, labels, metrics.jsonl and results.json, bit for bit, on the same kind of machine.

    Args:
        data: the name of a source, such as "folder:/images" or "cifar10"; images uint8 `[N, H, W]` or `[N, H, W, C]`, or vectors float
            `[N, D]`, or a pair of these and class labels `[N]`; a finite tf.data.Dataset of images, or of pairs of image and class
            label. Or all settings, as a SelaConfig.
        workdir: the directory of the run.
        experiment_of: makes the experiment, for those who study other ways to label or to draw images.
        minutes: the time that the run may take, by which its `epochs` are chosen; 0 for no limit.
        restart: begin the run in `workdir` anew; its checkpoints and its course are removed, and a finished network stays until there is
            another.
        workers_timeout: the seconds within which all processes that TF_CONFIG names have to come.
        settings: the settings by name, those of SelaConfig.

    Raises:
        ValueError: the settings, the data or the directory cannot be used (ConfigError, SourceError), or training diverged (DivergedError).
        StorageError: a file cannot be written.
        TypeError: a setting is unknown.
        TrainingInterrupted: on SIGINT or SIGTERM, after saving.
    """
    asked: dict[str, Any] = {"workdir": workdir, "minutes": minutes, "restart": restart, "workers_timeout": workers_timeout}
    place = TrainOptions(**asked)
    workdir = place.workdir
    if not isinstance(data, SelaConfig) and "dataset" in settings:
        raise ConfigError(f"`dataset={settings['dataset']}` is given beside other images: leave one of them out")
    if isinstance(data, SelaConfig):
        results = _run({**given_by(data), **settings}, place, experiment_of)
    elif isinstance(data, str):
        results = _run({"dataset": data, **settings}, place, experiment_of)
    else:
        limit = settings.get("memory_limit", default_of(SelaConfig, "memory_limit"))
        limit = SelaConfig(dataset="python:", memory_limit=limit).memory_limit
        with images_given(data, memory_limit=int(limit * 2**30), tell=tell) as name:
            results = _run({"dataset": name, **settings}, place, experiment_of)
    if not results:
        # Another worker has them.
        return results
    changes = f"\n\n{changes_table(results['continued'])}" if "continued" in results else ""
    print(f"\n{results_table(results)}{changes}\n\nThe run lies in {workdir}: {_what_lies_in(pathlib.Path(workdir))}", flush=True)
    return results


def _what_lies_in(workdir: pathlib.Path) -> str:
    """Returns what is worth a look, as far as it is there."""
    shown = (PAGE, RESULTS, PICTURE, f"{GALLERIES}/", LABELS, WEIGHTS, METRICS, f"{TENSORBOARD}/")
    return ", ".join(name for name in shown if (workdir / name).exists())


def _run(given: Mapping[str, Any], place: TrainOptions, experiment_of: type[Experiment]) -> dict[str, Any]:
    began = time.perf_counter()
    cluster = cluster_to_join(given.get("strategy") or default_of(SelaConfig, "strategy"))
    if cluster is not None and cluster.task:
        _follow(given, place, cluster, experiment_of)
        return {}
    directory = Workdir(place.workdir, given, restart=place.restart)
    config = directory.config
    if place.minutes and directory.previous is None and config.epochs is not CHOSEN:
        raise ConfigError(
            f"`minutes={place.minutes:g}` chooses the epochs, and `epochs={config.epochs}` is given: leave one of them out"
        )
    if cluster is None:
        # The settings of a run that is continued may ask for several.
        cluster_to_join(config.strategy)
    timeout = place.workers_timeout
    # TensorBoard's files are written by TensorFlow, in the middle of anything.
    with storage_errors(directory.path), contextlib.closing(directory):
        if cluster is not None and directory.has_results:
            with devices_of(config, cluster, timeout=timeout) as devices:
                start_together(devices.shards, Start(config, is_done=True))
            cluster = None
        with devices_of(config, cluster, timeout=timeout) as devices:
            check_before_loading(config, devices.strategy)
            if directory.is_finished:
                print(f"This run is finished ({config.epochs} epochs). More: a larger `epochs`.", flush=True)
                return directory.read_results()
            directory.lock()
            start = Start(config, newest_checkpoint(directory), _minutes_of_new_run(directory, place))
            start_together(devices.shards, start)
            experiment, step = _begin(start, devices, experiment_of, directory, began=began)
            for line in directory.changes():
                print(line, flush=True)
            describe_older_run(directory.path)
            directory.start(step, experiment.config)
            if write_left_out(directory.path / LEFT_OUT, experiment.data.rejected):
                tell(f"images that were left out: {directory.path / LEFT_OUT}")
            final = None
            if not directory.has_results:
                with way_out_of_divergence(directory):
                    _train(experiment, directory, step, begins=start.saved is None)
                    final = finish(experiment, directory)
        if final is None:
            # Only the report is missing.
            results, outputs = directory.read_results(), outputs_again(experiment, directory)
        else:
            results, outputs = judge_run(experiment, final)
            directory.write_results(results)
            # As they will be read if only the report is missing.
            results = directory.read_results()
        if experiment.config.report:
            draw(experiment, directory, results, outputs)
        return results


def _minutes_of_new_run(directory: Workdir, place: TrainOptions) -> float:
    """Returns the time by which the epochs are chosen; 0, and says so, for a run that is continued."""
    if not place.minutes or directory.previous is None or directory.restart:
        return place.minutes
    tell(
        f"`minutes={place.minutes:g}` is for a new run: this one keeps its {directory.config.epochs} epochs, unless a larger `epochs` is given"
    )
    return 0.0


def _follow(given: Mapping[str, Any], place: TrainOptions, cluster: Cluster, experiment_of: type[Experiment]) -> None:
    """Trains with the chief, which has the directory of the run: takes its start, its steps and its part of each relabelling."""
    own = settings_of_run("", given)[0]
    with devices_of(own, cluster, timeout=place.workers_timeout) as devices, contextlib.redirect_stdout(io.StringIO()):
        start = start_together(devices.shards, None, own=own)
        if start.is_done:
            return
        experiment, step = _begin(start, devices, experiment_of, None)
        _train(experiment, None, step, begins=start.saved is None)
        experiment.refresh()
        experiment.labelling.relabel(experiment.last_step)


def _begin(
    start: Start, devices: Devices, experiment_of: type[Experiment], directory: Workdir | None, *, began: float = 0.0
) -> tuple[Experiment, int]:
    """Makes the experiment, with the state of the checkpoint where there is one; returns it and the steps that were taken.

    Where minutes are given for a new run, they choose its epochs; `began` is the time at which they began.
    """
    config, saved, shards = start.config, start.saved, devices.shards
    # Only the first of several workers has the directory of the run.
    scratch_dir = pathlib.Path(tempfile.gettempdir()) if directory is None else directory.path
    state: dict[str, Any] = {"begins": saved is None, "shards": shards, "scratch_dir": scratch_dir}
    if saved is None:
        check_backbone_weights(config)
    else:
        state["continuation"] = Continuation.of_state(arrays_under("continuation", saved.arrays))
        # Its rules and statistics hold, also where changed images were accepted, which have others.
        state["network"] = network_of(saved)
    experiment = experiment_of(config, devices.strategy, **state)
    rates = None
    counts = {"num_train": len(experiment.data.train), "num_held_out": len(experiment.data.held_out)}
    if start.minutes:
        are_given = config.num_relabellings is not CHOSEN
        with Activity("measuring the speed"):
            rates = measured_rates(experiment)
        fit = fit_to_minutes(
            start.minutes,
            experiment.config,
            parts_of_run(experiment, rates, **counts),
            relabellings_are_given=are_given,
            spent=time.perf_counter() - began,
        )
        # The chief's clock decides.
        epochs, relabellings = shards.of_first(np.array([fit.epochs, fit.num_relabellings], np.float64))
        fit = dataclasses.replace(fit, epochs=int(epochs), num_relabellings=int(relabellings))
        tell(
            f"`minutes={start.minutes:g}`: `epochs={fit.epochs}` of {experiment.steps_per_epoch} steps, `num_relabellings={fit.num_relabellings}`"
        )
        experiment = experiment_of(fit, devices.strategy, data=experiment.data, **state)
    facts = {**dataclasses.asdict(experiment.config), **experiment.provenance.fingerprints}
    check_same(shards, "run", {**facts, "step": 0 if saved is None else saved.step})
    step = put_back(directory, experiment, saved)
    print(experiment.in_words(step), flush=True)
    if step < experiment.last_step:
        if rates is None:
            with Activity("measuring the speed"):
                rates = measured_rates(experiment)
        tell(time_in_words(parts_of_run(experiment, rates, **counts), done=step / experiment.last_step))
        experiment.clock.view_seconds, experiment.clock.views_each = rates.view_drawn, experiment.own_views
        if not tf.config.list_logical_devices("GPU"):
            # The views are made by the processors that train.
            experiment.clock.drawing_each = rates.batch_drawn
    return experiment, step


def _train(experiment: Experiment, directory: Workdir | None, first_step: int, *, begins: bool) -> None:
    """Takes the steps that are left, and saves at the start, every `monitor_epochs` epochs and `checkpoint_minutes`, and on a signal; without
    a directory, another worker writes."""
    config = experiment.config
    meta = {
        **experiment.provenance.meta(experiment.description),
        "tensorflow": RELEASE,
        "settings": to_flagfile(config).splitlines(),
    }

    def save(step: int) -> None:
        state = experiment.state()
        check_finite(state, step)
        if directory is not None:
            directory.flush()
            saves.save(directory.checkpoints, step, state, meta, keep=config.keep_checkpoints)

    callbacks = experiment.callbacks(directory)
    if begins:
        experiment.label_anew()
        # From now on the run has begun, and goes on from a checkpoint or not at all.
        save(0)
    if first_step == 0 and directory is not None:
        log_first_labels(directory, experiment.class_agreement, experiment.labels)
    loop = TrainingLoop(
        model=experiment.model,
        take_step=experiment.take_step,
        steps_per_epoch=experiment.steps_per_epoch,
        log_every_steps=config.log_every_steps,
        clock=experiment.clock,
        means=experiment.means,
        save_epochs=config.monitor_epochs,
        save_seconds=60 * config.checkpoint_minutes,
        shards=experiment.shards,
    )
    if directory is not None:
        callbacks.append(Progress(config.epochs, config.batch_size, config.monitor_epochs, directory, experiment.clock))
    with signals_noted() as stop:
        if isinstance(experiment.labelling, ShownLabelling):
            experiment.labelling.stop = stop
        loop.run(
            experiment.distributed(experiment.views(first_step, experiment.last_step)),
            first_step=first_step,
            last_step=experiment.last_step,
            callbacks=callbacks,
            save=save,
            stop=stop,
        )
        signal_number, _ = loop.agreed(stop)
    if signal_number is not None:
        # It came after the last step, whose state is saved. What is left of the run may take long.
        raise TrainingInterrupted(signal_number, experiment.last_step)
