"""The recipe, top to bottom: `run(config, workdir)`."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sela_tf import checkpoint
from sela_tf.config import ConfigError, SelaConfig
from sela_tf.data.label_files import read_known_labels
from sela_tf.data.pipeline import inference_batches
from sela_tf.evaluation.doctor import CollapseDoctor
from sela_tf.evaluation.monitors import ClusterMonitor
from sela_tf.evaluation.summary import evaluate_chance, evaluate_labels, evaluate_network
from sela_tf.loop import Clock, Progress, signals_noted, train
from sela_tf.models import without_rotation_head
from sela_tf.models.features import read
from sela_tf.parts import (
    Data,
    augmentation,
    check_before_loading,
    compiled_model,
    first_network,
    label_table,
    load_training_data,
    network,
    prepare_devices,
    shape_in_words,
    training_views,
)
from sela_tf.reporter import write_report
from sela_tf.self_labelling.callback import SelfLabelling
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.self_labelling.schedule import relabel_steps
from sela_tf.transport.assignment import assign_labels
from sela_tf.transport.sinkhorn import sinkhorn
from sela_tf.watching import knn_monitor, log_first_labels, log_relabelling, make_watchers
from sela_tf.workdir import FLAGS, RESULTS, WEIGHTS, Workdir, read_config, read_results

_PASS_BATCH = 1000
"""Images of a batch of a label pass: the reference's number, large enough for steady batch statistics."""


def run(
    config: SelaConfig,
    workdir: str | os.PathLike[str],
    *,
    labelling_of: Callable[..., SelfLabelling] = SelfLabelling,
    views_of: Callable[..., tf.data.Dataset] = training_views,
) -> dict[str, Any]:
    """Trains as `config` says, or continues the run in `workdir`; returns what results.json then holds.

    Args:
        config: the settings.
        workdir: the directory of the run.
        labelling_of: makes the callback, for those who study other ways to label.
        views_of: makes the batches, for those who study other ways to draw images.

    Raises:
        ValueError: the settings, the data or the directory will not do (ConfigError, SourceError), or training diverged.
        TrainingInterrupted: on SIGINT or SIGTERM, after saving.
    """
    config = config.absolute()
    strategy = prepare_devices(config)
    check_before_loading(config, strategy)
    directory = Workdir(workdir, config)
    if directory.is_finished:
        print(f"This run is finished ({config.epochs} epochs). More: a larger --epochs.", flush=True)
        return directory.read_results()
    data = load_training_data(config)
    steps_per_epoch = len(data.train) // config.batch_size
    last_step = config.epochs * steps_per_epoch

    labels = label_table(config, data, strategy)
    model = compiled_model(config, data, labels, strategy)
    fingerprint = data.train.fingerprint()
    step, kept = _continue_from(directory, config, model, labels, fingerprint)
    print(
        f"{len(data.train)} training images, {len(data.held_out)} held out, {shape_in_words(data)}; "
        f"{model.count_params():,} parameters; {steps_per_epoch} steps an epoch on {strategy.num_replicas_in_sync} device(s)"
        + (f"; continues at step {step}" if step else ""),
        flush=True,
    )
    label_view = augmentation(config) if config.label_view == "training" else None
    labelling = labelling_of(
        labels,
        lambda number: inference_batches(
            data.train, size=data.size, batch_size=_PASS_BATCH, seed=config.seed, augmentation=label_view, number=number
        ),
        relabel_steps=relabel_steps(
            config.num_relabellings, epochs=config.epochs, steps_per_epoch=steps_per_epoch, spacing=config.relabel_spacing
        ),
        assign=functools.partial(
            assign_labels if config.exact_balance else sinkhorn,
            lam=config.lam,
            tolerance=config.transport_tolerance,
            max_iterations=config.transport_max_iterations,
            marginals=config.marginals,
            known=read_known_labels(config.known_labels, data.train, config.num_clusters) if config.known_labels else None,
        ),
        batch_statistics=config.label_view == "training",
        heads_in_turn=config.relabel_heads == "in_turn",
        log=functools.partial(log_relabelling, directory, data.train.classes),
    )
    replicas = strategy.num_replicas_in_sync
    batches = views_of(config, data, batch_size=config.batch_size, first_step=step, last_step=last_step, replicas=replicas)
    clock = Clock()
    knn = knn_monitor(config, data)

    def save(step: int) -> None:
        meta = {"data_fingerprint": fingerprint, "num_examples": len(data.train)}
        directory.flush()
        checkpoint.save(directory.checkpoints, step, _state(model, labels, watchers), meta, keep=config.keep_checkpoints)

    directory.start(step)
    try:
        watchers = make_watchers(config, data, labels, labelling.relabel_steps, directory, clock, kept)
        if step == 0:
            log_first_labels(directory, data.train.classes, labels)
        with signals_noted() as stop:
            train(
                model,
                batches,
                strategy=strategy,
                xla=config.xla,
                callbacks=[labelling, *knn, *watchers.values(), Progress(config.epochs, config.batch_size, directory, clock)],
                clock=clock,
                first_step=step,
                last_step=last_step,
                steps_per_epoch=steps_per_epoch,
                log_every_steps=config.log_every_steps,
                save=save,
                stop=stop,
            )
        return _finish(directory, config, data, model, labels, labelling, strategy, last_step)
    finally:
        directory.close()


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
    config = read_config(path)
    data = read_results(path)["data"]
    model = network(config, data["image_shape"], data["mean"], data["variance"])
    try:
        model.load_weights(path / WEIGHTS)
    except (OSError, ValueError, KeyError) as error:
        why = str(error).splitlines()[0][:200]
        raise ConfigError(
            f"{path / WEIGHTS} is missing or damaged, or of another network ({why}): remove {path / RESULTS} and repeat the run's command, "
            "which writes both anew"
        ) from error
    return model


def _state(
    model: keras.Model, labels: LabelTable, watchers: Mapping[str, ClusterMonitor | CollapseDoctor]
) -> dict[str, np.ndarray]:
    """Everything that training changes."""
    variables = {"model": model.variables, "optimizer": model.optimizer.variables}
    arrays = {f"{kind}/{i:04d}": read(value) for kind, values in variables.items() for i, value in enumerate(values)}
    states = {"table": labels.state(), **{f"monitors/{name}": watcher.state() for name, watcher in watchers.items()}}
    return {**arrays, **{f"{place}/{name}": value for place, state in states.items() for name, value in state.items()}}


def _continue_from(
    directory: Workdir, config: SelaConfig, model: keras.Model, labels: LabelTable, fingerprint: str
) -> tuple[int, dict[str, np.ndarray]]:
    """Puts the newest checkpoint's state back, if there is one; returns the steps that were taken, and the state of the monitors."""
    saved, passed_over = checkpoint.load_newest(directory.checkpoints)
    for line in passed_over:
        print(f"checkpoint passed over: {line}", flush=True)
    if saved is None:
        if passed_over or directory.has_results:
            raise ConfigError(
                f"--workdir={directory.path}: its checkpoints are gone or damaged, so the run cannot be continued: name another directory"
            )
        return 0, {}
    if saved.meta["data_fingerprint"] != fingerprint:
        raise ConfigError(
            f"--workdir={directory.path} was trained on {saved.meta['num_examples']} images, and those of "
            f"--dataset={config.dataset} ({labels.num_examples}) are not the same any more: restore them, or name another directory"
        )
    for kind, variables in (("model", model.variables), ("optimizer", model.optimizer.variables)):
        for i, variable in enumerate(variables):
            variable.assign(saved.arrays[f"{kind}/{i:04d}"])
    labels.restore(checkpoint.below("table", saved.arrays))
    return saved.step, checkpoint.below("monitors", saved.arrays)


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
    final = labelling.relabel(last_step)
    without_rotation_head(model).save_weights(directory.path / WEIGHTS)
    names = {} if data.train.names is None else {"names": np.array(data.train.names)}
    directory.write_labels(
        {
            "labels": labels.labels,
            "training_labels": training_labels,
            "potentials": labels.potentials,
            "lam": np.array(config.lam, np.float32),
            "converged": np.array([head.assignment.converged for head in final]),
            "num_changes": labels.num_changes,
            "num_relabellings": labels.num_relabellings,
            "data_fingerprint": np.array(data.train.fingerprint()),
            "source_rows": data.train.rows,
            **names,
        }
    )
    evaluate = functools.partial(evaluate_network, train=data.train, held_out=data.held_out, size=data.size, strategy=strategy)
    results = {
        "trained": evaluate(model),
        "untrained": evaluate(first_network(config, data, strategy), settle=True),
        "chance": evaluate_chance(
            None if data.train.classes is None else data.held_out.classes, config.num_clusters, seed=config.seed
        ),
        "transport": {name: [head.metrics[name] for head in final] for name in ("converged", "marginal_error", "num_iterations")},
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
    if config.report:
        try:
            write_report(directory, config, data, without_rotation_head(model), labels, results, strategy)
        except Exception as error:
            # whatever goes wrong with a picture, the training is done and shall not be lost
            print(f"WARNING: the report could not be drawn: {type(error).__name__}: {error}", flush=True)
    directory.write_results(results)
    return results
