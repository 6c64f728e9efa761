"""Training: `self_label(settings, config)` writes the artifacts Model, Labels and Metrics for Examples."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
import tempfile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import tensorflow as tf

from components import artifacts
from components.settings import RUN, SelfLabellingSettings, training_config
from sela_tf.commands.export import export_to
from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.record_writer import example_id
from sela_tf.data.records import read_manifest
from sela_tf.files.atomic import whole_file
from sela_tf.models.heads import find_multi_head
from sela_tf.reporting.tables import results_table
from sela_tf.runs.flagfile import read_config
from sela_tf.runs.labels import read_labels
from sela_tf.runs.names import METRICS, RESULTS
from sela_tf.runs.network import load_run
from sela_tf.runs.results import read_results
from sela_tf.serving.predictions import predictions
from sela_tf.settings.commands import ExportConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import load_data
from sela_tf.training.run import run

_NAME = "self_labelling"
SERVING = "Format-Serving"
LABELS_FILE = "labels.parquet"


def self_label(settings: SelfLabellingSettings, config: SelaConfig) -> dict[str, Any]:
    """Trains a model on examples and writes the model, its labels and its metrics.

    A training that was stopped continues from its last checkpoint. Nothing is done if the directories already hold the artifacts of the
    same examples and settings.

    Args:
        settings: Directories, and options of the served model.
        config: The settings of the training. Their data set is replaced by the examples.

    Returns:
        The content of results.json.

    Raises:
        ConfigError: The settings cannot be used, or a directory holds another artifact.
        SourceError: The examples cannot be used.
        TrainingInterrupted: SIGINT or SIGTERM was received; the state was saved.
    """
    config = training_config(config, settings.examples)
    manifest = read_manifest(settings.examples, name=config.dataset)
    made_of = {
        "component": _NAME,
        "examples": manifest["digest"],
        "config": _that_count(config),
        "settings": {name: getattr(settings, name) for name in ("potentials", "warm_up")},
    }
    model, labels, metrics = (pathlib.Path(path) for path in (settings.model, settings.labels, settings.metrics))
    outputs = {"model": model, "labels": labels, "metrics": metrics}
    workdir = _place_to_work(settings)
    if all(artifacts.is_current(str(path), made_of) for path in outputs.values()):
        results = read_results(model / RUN)
        if results["config"].get("evaluate", config.evaluate) == config.evaluate:
            print(f"unchanged since it was trained: {model}\n\n{results_table(results)}\n", flush=True)
            return results
    for name, path in outputs.items():
        artifacts.refuse_other(str(path), name, made_of)
    for name, path in outputs.items():
        artifacts.start(str(path), name, _NAME)
    try:
        results = run(config, workdir)
    except ConfigError as error:
        raise error.renamed(workdir="scratch" if settings.scratch else "model") from error
    if workdir != model / RUN:
        _replace(workdir, model / RUN)
    _export(settings, model)
    _write_labels(config, model / RUN, labels / LABELS_FILE)
    for name in (RESULTS, METRICS):
        shutil.copyfile(model / RUN / name, metrics / name)
    for path in outputs.values():
        artifacts.finish(str(path), made_of)
    return results


def _place_to_work(settings: SelfLabellingSettings) -> pathlib.Path:
    """Returns the directory of the training: below the model's, or `scratch`, from which it is copied at the end.

    Raises:
        ConfigError: `scratch` lies in the model's directory, or the reverse.
    """
    place = pathlib.Path(settings.model).resolve() / RUN
    scratch = pathlib.Path(settings.scratch or place).resolve()
    if scratch != place and (
        scratch.is_relative_to(settings.model) or scratch.is_relative_to(place.parent) or place.is_relative_to(scratch)
    ):
        raise ConfigError(
            f"`scratch={settings.scratch}` and `model={settings.model}` lie within one another: name another directory"
        )
    return pathlib.Path(settings.model) / RUN if scratch == place else scratch


def _that_count(config: SelaConfig) -> dict[str, Any]:
    """Returns the settings that change the result. The examples are left out, because they have a digest of their own."""
    fields = dataclasses.fields(config)
    return {
        field.name: getattr(config, field.name) for field in fields if not field.metadata["may_change"] and field.name != "dataset"
    }


def _replace(source: pathlib.Path, target: pathlib.Path) -> None:
    """Replaces the directory `target` by a copy of `source`, file by file, because a mounted bucket cannot rename directories."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, copy_function=shutil.copyfile)


def _export(settings: SelfLabellingSettings, model: pathlib.Path) -> None:
    """Exports the network of the run to the SavedModel of the artifact."""
    options = ExportConfig(
        workdir=str(model / RUN),
        export_dir=str(model),
        potentials=settings.potentials,
        warm_up=settings.warm_up,
        check=settings.check,
    )
    with tempfile.TemporaryDirectory() as directory:
        exported = export_to(pathlib.Path(directory) / SERVING, options)
        _replace(exported.path, model / SERVING)


def _write_labels(config: SelaConfig, workdir: pathlib.Path, path: pathlib.Path) -> None:
    """Writes a table with a row for each training image and head: the final label, its probability by the network, and the margin."""
    model = load_run(workdir)
    heads = find_multi_head(model)
    # The settings that were chosen, too; the examples may lie elsewhere by now.
    run_config = dataclasses.replace(read_config(workdir), dataset=config.dataset, cache_dir=config.cache_dir)
    train = load_data(run_config).train
    kept = read_labels(workdir, (heads.num_heads, heads.num_clusters))
    forward = tf.function(lambda images: model(images, training=False), reduce_retracing=True)
    names = np.array(train.names)
    done = 0
    schema = pa.schema(
        [
            ("example_id", pa.string()), ("source_name", pa.string()), ("head", pa.int32()), ("cluster", pa.int64()),
            ("probability", pa.float32()), ("margin", pa.float32()),
        ]
    )  # fmt: skip
    with whole_file(path) as unfinished, pa.parquet.ParquetWriter(unfinished, schema) as writer:
        size = tuple(model.input.shape[1:-1])
        for images, _ in inference_batches(train, size=size, batch_size=EVALUATION_BATCH, in_order=True):
            some = slice(done, done + len(images))
            clusters = kept["labels"].T[some].astype(np.int64)
            said = predictions(forward(images), kept["potentials"], lam=float(kept["lam"]), clusters=clusters)
            rows = np.repeat(names[some], heads.num_heads)
            columns = {
                "example_id": [example_id(name) for name in rows.tolist()],
                "source_name": rows,
                "head": np.tile(np.arange(heads.num_heads, dtype=np.int32), len(images)),
                "cluster": clusters.reshape(-1),
                "probability": said.probability.numpy().reshape(-1),
                "margin": said.margin.numpy().reshape(-1),
            }
            writer.write_table(pa.table(columns, schema=schema))
            done = some.stop
