"""Completion of a run after its last step: the last transport, the network and its labels on disk, the verdict, the report."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sela_tf.compat.activity import Activity
from sela_tf.evaluation.outputs import EvaluationOutputs
from sela_tf.runs.cluster_names import kept_names
from sela_tf.runs.labels import read_labels
from sela_tf.runs.network import load_run
from sela_tf.runs.workdir import Workdir
from sela_tf.self_labelling.label_pass import HeadLabels
from sela_tf.training.evaluation import judge, outputs_of_run
from sela_tf.training.experiment import Experiment
from sela_tf.training.report import write_report


def finish(experiment: Experiment, directory: Workdir) -> list[HeadLabels]:
    """Labels all images once more by the final weights, and makes network and labels the run's; returns the outcome of each head."""
    final: list[HeadLabels] = []

    def labels_of(weights: str) -> dict[str, np.ndarray]:
        arrays, outcome = _last_transport(experiment, directory, weights)
        final.extend(outcome)
        return arrays

    directory.finish(experiment.refresh(), experiment.description, experiment.last_step, labels_of)
    return final


def _last_transport(experiment: Experiment, directory: Workdir, weights: str) -> tuple[dict[str, np.ndarray], list[HeadLabels]]:
    """Labels all images once more; returns the arrays of labels.npz, and the outcome of each head.

    Args:
        experiment: the trained experiment.
        directory: the directory of the run.
        weights: the digest of the weights.
    """
    labels, train = experiment.labels, experiment.data.train
    training_labels = labels.labels
    final = experiment.labelling.relabel(experiment.last_step)
    names = {} if train.names is None else {"names": np.array(train.names)}
    if experiment.continuation is not None and experiment.continuation.cluster_names is not None:
        names["cluster_names"] = experiment.continuation.cluster_names
    arrays = {
        "labels": labels.labels,
        "training_labels": training_labels,
        "potentials": labels.potentials,
        "lam": np.array(final[0].assignment.lam, np.float32),
        "converged": np.array([head.assignment.converged for head in final]),
        "num_changes": labels.num_changes,
        "num_relabellings": labels.num_relabellings,
        **{name: np.array(value) for name, value in experiment.provenance.fingerprints.items()},
        "source_rows": train.rows,
        "step": np.array(experiment.last_step),
        "weights_sha256": np.array(weights),
        **names,
        **kept_names(directory.path),
    }
    return arrays, final


def judge_run(experiment: Experiment, final: list[HeadLabels]) -> tuple[dict[str, Any], EvaluationOutputs | None]:
    """Returns the contents of results.json, and the outputs of the trained network on the images that it is judged by."""
    config, data, labels = experiment.config, experiment.data, experiment.labels
    verdict = judge(
        config,
        data,
        experiment.network,
        labels=labels.labels,
        potentials=labels.potentials,
        lam=final[0].assignment.lam,
        strategy=experiment.network.distribute_strategy,
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
            **experiment.provenance.changes,
        },
    }
    if experiment.continuation is not None:
        results["continued"] = experiment.continuation.changes(labels.labels)
    return results, verdict.outputs


def outputs_again(experiment: Experiment, directory: Workdir) -> EvaluationOutputs | None:
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


def draw(experiment: Experiment, directory: Workdir, results: dict[str, Any], outputs: EvaluationOutputs | None) -> None:
    """Draws the report."""
    try:
        with Activity("drawing the report"):
            write_report(directory, experiment.config, experiment.data, experiment.labels.labels, results, outputs)
    except Exception as error:
        # Whatever goes wrong with a picture, the training is done and must not be lost.
        print(f"WARNING: the report could not be drawn: {type(error).__name__}: {error}", flush=True)
