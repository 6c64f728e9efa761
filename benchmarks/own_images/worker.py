"""One row, in a process of its own: `python -m benchmarks.own_images.worker JOB.json ROW.json`."""

from __future__ import annotations

import json
import pathlib
import sys
import time
from typing import Any

import keras
import tensorflow as tf
from absl import flags as absl_flags

from benchmarks.own_images.baselines import features_of_pixels, histograms, pixels
from benchmarks.own_images.jobs import Job
from benchmarks.own_images.judging import Features, judge
from benchmarks.own_images.measures import measures_of
from benchmarks.own_images.sela import TimedExperiment, fitted
from benchmarks.own_images.simclr import train_simclr
from benchmarks.own_images.variants import VARIANTS
from sela_tf.cli import flags
from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.pipeline import inference_batches
from sela_tf.evaluation.outputs import network_outputs
from sela_tf.models.inference import BatchedInference
from sela_tf.runs.flagfile import read_config
from sela_tf.runs.network import load_run
from sela_tf.settings.training import SelaConfig
from sela_tf.training.devices import prepare_devices
from sela_tf.training.images import Data, load_data
from sela_tf.training.initial_state import description_of, first_network
from sela_tf.training.run import run


def make_row(job: Job) -> dict[str, Any]:
    """Trains, if the method trains, and judges; returns the row."""
    config = config_of(job.flags)
    start = time.process_time()
    row: dict[str, Any] = {}
    if job.method == "sela":
        if job.minutes:
            config = fitted(config, cpu_seconds=60 * job.minutes)
        run(config, job.workdir, experiment_of=VARIANTS[job.variant])
        row["cpu_seconds"] = TimedExperiment.timer.seconds
        # The settings that were chosen, too.
        config = read_config(job.workdir)
    prepare_devices(config)
    data = load_data(config)
    model: keras.Model | None = None
    if job.method == "sela":
        model = load_run(job.workdir)
        row["steps"] = config.epochs * (len(data.train) // config.batch_size)
    elif job.method == "simclr":
        model, row["steps"], row["cpu_seconds"] = train_simclr(config, data, cpu_seconds=job.cpu_seconds)
    elif job.method == "untrained":
        model = untrained_network(config, data)
    if model is not None:
        features = network_features(model, data)
        # The projection of SimCLR is in place of the heads.
        features = features if job.method != "simclr" else features._replace(clusters=None)
    else:
        features = features_of_pixels(data, {"raw": pixels, "histogram": histograms}[job.method])
    judged = judge(features, data, num_clusters=config.num_clusters)
    # Without clusters of its own, a method has not all of the measures.
    if job.method in ("sela", "untrained", "raw"):
        row["measures"] = measures_of(config, data, features, model)
    described = {
        "flags": flags.departures(config),
        "image_shape": [*data.size, data.train.channels],
        "num_training": len(data.train),
        "num_held_out": len(data.held_out),
        "process_seconds": time.process_time() - start,
    }
    return {**job.identity(), **described, **row, **judged}


def config_of(arguments: list[str]) -> SelaConfig:
    """Returns the settings that flags stand for; later ones win."""
    values = absl_flags.FlagValues()
    flags.define(values, SelaConfig)
    flags.parse(values, ["own_images", *arguments])
    return flags.settings(values, SelaConfig).absolute()


def network_features(model: keras.Model, data: Data) -> Features:
    """Returns the embeddings of a network, and the plain argmax of its heads."""
    training = network_outputs(model, data.train, size=data.size)
    held_out = network_outputs(model, data.held_out, size=data.size)
    return Features(training.embedding, held_out.embedding, held_out.clusters)


def untrained_network(config: SelaConfig, data: Data) -> keras.Model:
    """Returns the network of a run before its first step, its moving statistics filled from the training images."""
    model = first_network(config, description_of(config, data), tf.distribute.get_strategy())
    batches = inference_batches(data.train, size=data.size, batch_size=EVALUATION_BATCH)
    BatchedInference(model).fill_moving_statistics(batches)
    return model


if __name__ == "__main__":
    wanted, written = (pathlib.Path(argument) for argument in sys.argv[1:])
    written.write_text(json.dumps(make_row(Job(**json.loads(wanted.read_text())))))
