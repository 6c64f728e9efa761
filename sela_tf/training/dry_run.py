"""The estimate of what a run would take, found out by doing a little of everything; no run is written."""

from __future__ import annotations

import dataclasses
import os
from typing import NamedTuple

import numpy as np

from sela_tf.data.batch_sizes import LABEL_PASS_BATCH
from sela_tf.data.sources import synthetic_count
from sela_tf.data.splits import is_held_out
from sela_tf.data.stores import DecodedFiles
from sela_tf.evaluation.protocol import EvaluationProtocol, evaluation_protocol
from sela_tf.models.build import stage_names
from sela_tf.models.layer_names import EMBEDDING, HEADS, HIDDEN
from sela_tf.settings.training import SelaConfig
from sela_tf.training.cost import (
    GIB,
    ROWS,
    Rates,
    num_classes,
    parts_of_run,
    random_transport,
    second_time,
    seconds_each,
    seconds_of_drawing,
    seconds_of_pass,
)
from sela_tf.training.devices import check_before_loading, prepare_devices
from sela_tf.training.experiment import Experiment
from sela_tf.training.images import settings_by_outline, shape_in_words
from sela_tf.training.initial_state import check_backbone_weights, settings_of_files
from sela_tf.transport.assignment import MemoryPlan, plan_memory
from sela_tf.transport.candidates import BYTES_PER_CANDIDATE
from sela_tf.transport.sinkhorn import usual_storage
from sela_tf.transport.solve import BYTES_STORED

_FEW, _MANY = 8, 8
# Entries that Newton's lists hold of a row when they are longest.
_LISTED = 32
# Of the logistic regression: scores of every image and class, their gradient, and what the solver makes of them, in float32.
_SCORES_OF_PROBE = 3


class _Counts(NamedTuple):
    """Images that the run would have."""

    train: int
    held_out: int | None
    """None where that many are loaded."""


def dry_run(config: SelaConfig) -> None:
    """Builds the model at its real size, does a little of everything that a run does, and prints estimates of time and memory.

    `synthetic:N` makes only a few of its images, and is estimated as if N were read from files.
    """
    # A download would be written to the disk.
    config = dataclasses.replace(config.absolute(), download=False)
    strategy = prepare_devices(config)
    check_before_loading(config, strategy)
    check_backbone_weights(config)
    if synthetic_count(config.dataset) is not None:
        config = settings_by_outline(config, replicas=strategy.num_replicas_in_sync, given_by=settings_of_files(config))
    stand_in, counts = _stand_in(config)
    experiment = Experiment(stand_in, strategy)
    # Settings that depend on what only decoding tells are known by now.
    config = dataclasses.replace(experiment.config, dataset=config.dataset)
    data, model = experiment.data, experiment.model
    counts = counts or _Counts(len(data.train), None)
    num_held_out = len(data.held_out) if counts.held_out is None else counts.held_out
    replicas = strategy.num_replicas_in_sync
    few = max(min(_FEW, len(data.train)) // replicas, 1) * replicas
    print(f"{counts.train} training images, {num_held_out} held out")
    print(f"{model.name}: {model.count_params():,} parameters, input {shape_in_words(data)}")
    for name in [*stage_names(model), *[HIDDEN] * bool(config.hidden_units), HEADS]:
        print(f"  {name}: {tuple(model.get_layer(name).output.shape[1:])}")

    step = experiment.take_step
    distributed = iter(experiment.distributed(experiment.views(0, 2, batch_size=few)))
    loss, step_seconds = second_time(lambda: float(step(next(distributed))["loss"]))
    print(f"one step on {few} images: loss {loss:.4f} (ln K = {np.log(config.num_clusters):.4f}), {step_seconds:.3f} s")
    per_image = _seconds_of_looking(experiment, few)
    print(f"looking at an image, as label passes do: {1000 * per_image:.3g} ms")
    view = seconds_of_drawing(experiment, batch_size=few)[1] / few
    cores = len(os.sched_getaffinity(0))
    print(
        f"one core makes {1 / view:,.0f} training views a second, and there are {cores}; the step above wants {view * few / step_seconds:.2g}"
    )
    plan = plan_memory(counts.train, config.num_clusters, config.label_memory * GIB, tolerance=config.transport_tolerance)
    rows, width = max(2 * config.num_clusters, ROWS), int(model.get_layer(HEADS).input.shape[-1])
    solved, transport_seconds = random_transport(config, plan, rows, width)
    print(
        f"one transport of {rows} x {config.num_clusters}: {solved.num_iterations} iterations, marginal error "
        f"{solved.marginal_error:.1e}, {transport_seconds:.2f} s"
    )
    rates = Rates(step_seconds / few, per_image, transport_seconds / rows)
    parts = parts_of_run(experiment, rates, num_train=counts.train, num_held_out=num_held_out)
    steps_per_epoch = counts.train // config.batch_size
    relabellings = len(experiment.schedule(steps_per_epoch)) + 1
    print(
        f"the run: {config.epochs} epochs of {steps_per_epoch} steps, {relabellings} relabellings of {config.num_heads} head(s), the last after "
        f"training: about {sum(part.total for part in parts) / 3600:.2g} hours here, likely less (small batches are slow)"
    )
    print("hours: " + ", ".join(f"{part.name} {part.total / 3600:.2g}" for part in parts if part.total))
    protocol = evaluation_protocol(config.evaluate, counts.train, num_held_out, seed=config.seed)
    _print_memory(experiment, counts, plan, protocol)


def _stand_in(config: SelaConfig) -> tuple[SelaConfig, _Counts | None]:
    """Returns the settings with fewer synthetic images, and the number that there would be; None if the data set is not made smaller."""
    wanted = synthetic_count(config.dataset)
    if wanted is None:
        return config, None
    least = int(2 * max(config.num_clusters, config.batch_size, _FEW) / (1 - config.eval_fraction)) + 1000
    if wanted <= least:
        return config, None
    fewer = dataclasses.replace(config, dataset=f"synthetic:{least}")
    if config.eval_dataset:
        return fewer, _Counts(wanted, None)
    held_out = sum(is_held_out(str(row), config.eval_fraction) for row in range(wanted))
    return fewer, _Counts(wanted - held_out, held_out)


def _seconds_of_looking(experiment: Experiment, few: int) -> float:
    """Returns the seconds of inference for one image, from the difference of a large pass and a small one."""
    many = min(_MANY * few, len(experiment.data.train))
    return seconds_each(few, seconds_of_pass(experiment, few, few)[0], many, seconds_of_pass(experiment, many, few)[0])


def _print_memory(experiment: Experiment, counts: _Counts, plan: MemoryPlan, protocol: EvaluationProtocol) -> None:
    """Prints what is held at once in each phase of a run."""
    config, data, model = experiment.config, experiment.data, experiment.model
    own = sum(part.images.nbytes for part in (data.train, data.held_out) if part.images is not None)
    decoded = sum(
        int(part.store.shapes.prod(axis=1).sum()) for part in (data.train, data.held_out) if isinstance(part.store, DecodedFiles)
    )
    # LAMB keeps two moments of each weight.
    network = (4 if config.optimizer == "lamb" else 3) * 4 * model.count_params()
    # TensorFlow keeps a second copy of arrays.
    in_memory = 2 * own + decoded
    libraries = _resident_bytes() - in_memory - network
    images = 0 if counts.train != len(data.train) else in_memory
    outputs = [int(np.prod(layer.output.shape[1:])) for layer in model.layers if hasattr(layer.output, "shape")]
    table = (8 * 4 + 8 * 2) * config.num_heads * counts.train
    held = {"libraries": libraries, "images": images, "labels": table, "network, gradients and momentum": network}
    entries = counts.train * config.num_clusters
    stored = BYTES_STORED[usual_storage(config.transport_tolerance)] * entries if plan.form != "computed" else 0
    listed = min(plan.rest, min(_LISTED, config.num_clusters) * BYTES_PER_CANDIDATE * counts.train)
    head_inputs = 4 * int(model.get_layer(HEADS).input.shape[-1]) * counts.train
    # Larger ones lie in a file.
    head_inputs *= head_inputs <= config.label_memory * GIB
    embedding, classes = int(model.get_layer(EMBEDDING).output.shape[-1]), num_classes(data)
    looked_at = 4 * (protocol.training_size + protocol.held_out_size) * (embedding + 3 * config.num_heads)
    probe = 4 * protocol.training_size * (embedding + _SCORES_OF_PROBE * classes) if classes else 0
    phases: dict[str, dict[str, int | float]] = {
        "training": {"activations of a batch": 2 * 4 * config.batch_size * sum(outputs)},
        "relabelling": {
            "features": head_inputs,
            f"log-probabilities of a head ({plan.form})": plan.log_probs_bytes(counts.train, config.num_clusters),
            "stored rows or lists": max(stored if stored <= plan.rest else 0, listed),
        },
        "a label pass": {
            "features": head_inputs,
            "activations of a batch": 3 * 4 * min(LABEL_PASS_BATCH, counts.train) * max(outputs),
        },
        "evaluation": {"embeddings and clusters": 2 * looked_at, "linear probe": probe},
    }
    print("memory, GiB: " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in held.items() if size))
    for name, taken in phases.items():
        print(f"  also, in {name}: " + ", ".join(f"{what} {size / GIB:.2f}" for what, size in taken.items()))
    worst = max(phases, key=lambda name: sum(phases[name].values()))
    peak = sum(held.values()) + sum(phases[worst].values())
    print(f"peak of memory about {peak / GIB:.2f} GiB, in {worst}; label passes may take {config.label_memory:g} (`label_memory`)")


def _resident_bytes() -> int:
    """Memory of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
