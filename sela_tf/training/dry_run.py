"""The estimate of what a run would take, found out by doing a little of everything; no run is written."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sela_tf.data.batch_sizes import LABEL_PASS_BATCH
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.sources import synthetic_count
from sela_tf.data.splits import is_held_out
from sela_tf.evaluation.clustering import cluster_metrics
from sela_tf.evaluation.knn import knn_accuracy
from sela_tf.evaluation.linear_probe import linear_probe_accuracy
from sela_tf.evaluation.protocol import EvaluationProtocol, evaluation_protocol
from sela_tf.models.build import cut_at_heads, stage_names
from sela_tf.models.inference import BatchedInference
from sela_tf.models.layer_names import EMBEDDING, HEADS, HIDDEN
from sela_tf.settings.training import SelaConfig
from sela_tf.training.devices import check_before_loading, prepare_devices
from sela_tf.training.experiment import Experiment
from sela_tf.training.images import Data, shape_in_words
from sela_tf.training.initial_state import check_backbone_weights
from sela_tf.training.loop import step_function
from sela_tf.transport.assignment import Assignment, MemoryPlan, assign_labels, plan_memory
from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.newton import BYTES_PER_CANDIDATE
from sela_tf.transport.sinkhorn import usual_storage
from sela_tf.transport.solve import BYTES_STORED

_FEW, _MANY = 8, 8
_GIB = 2**30
# Rows of the transport that is tried, at least, so that its fixed cost is a small part.
_ROWS = 4096
# Entries that Newton's lists hold of a row when they are longest.
_LISTED = 32
# Of the logistic regression: scores of every image and class, their gradient, and what the solver makes of them, in float32.
_SCORES_OF_PROBE = 3


class _Counts(NamedTuple):
    """Images that the run would have."""

    train: int
    held_out: int | None
    """None where that many are loaded."""


class _Part(NamedTuple):
    """A part of the run: how often it happens, and how long it takes each time."""

    name: str
    times: int
    seconds: float

    @property
    def hours(self) -> float:
        return self.times * self.seconds / 3600


def dry_run(config: SelaConfig) -> None:
    """Builds the model at its real size, does a little of everything that a run does, and prints estimates of time and memory.

    `synthetic:N` makes only a few of its images, and is estimated as if N were read from files.
    """
    # A download would be written to the disk.
    config = dataclasses.replace(config.absolute(), download=False)
    strategy = prepare_devices(config)
    check_before_loading(config, strategy)
    check_backbone_weights(config)
    stand_in, counts = _stand_in(config)
    experiment = Experiment(stand_in, strategy)
    data, model = experiment.data, experiment.model
    counts = counts or _Counts(len(data.train), None)
    num_held_out = len(data.held_out) if counts.held_out is None else counts.held_out
    replicas = strategy.num_replicas_in_sync
    few = max(min(_FEW, len(data.train)) // replicas, 1) * replicas
    print(f"{counts.train} training images, {num_held_out} held out")
    print(f"{model.name}: {model.count_params():,} parameters, input {shape_in_words(data)}")
    for name in [*stage_names(model), *[HIDDEN] * bool(config.hidden_units), HEADS]:
        print(f"  {name}: {tuple(model.get_layer(name).output.shape[1:])}")

    step = step_function(model, strategy, config.xla)
    distributed = iter(strategy.experimental_distribute_dataset(experiment.views(0, 2, batch_size=few)))
    loss, step_seconds = _second_time(lambda: float(step(next(distributed))["loss"]))
    print(f"one step on {few} images: loss {loss:.4f} (ln K = {np.log(config.num_clusters):.4f}), {step_seconds:.3f} s")
    per_image = _seconds_of_looking(experiment, few)
    print(f"looking at an image, as label passes do: {1000 * per_image:.3g} ms")
    plan = plan_memory(counts.train, config.num_clusters, config.label_memory * _GIB, tolerance=config.transport_tolerance)
    rows, width = max(2 * config.num_clusters, _ROWS), int(model.get_layer(HEADS).input.shape[-1])
    solved, transport_seconds = _transport(config, plan, rows, width)
    print(
        f"one transport of {rows} x {config.num_clusters}: {solved.num_iterations} iterations, marginal error "
        f"{solved.marginal_error:.1e}, {transport_seconds:.2f} s"
    )
    protocol = evaluation_protocol(config.evaluate, counts.train, num_held_out, seed=config.seed)
    steps_per_epoch = counts.train // config.batch_size
    # The last transport, by the final weights, is one more.
    relabellings = len(experiment.schedule(steps_per_epoch)) + 1
    parts = [
        _Part("training", config.epochs, step_seconds / few * config.batch_size * steps_per_epoch),
        _Part("label passes", relabellings, per_image * counts.train),
        _Part("transport", relabellings * config.num_heads, transport_seconds / rows * counts.train),
        *_evaluation(experiment, protocol, per_image, relabellings),
    ]
    print(
        f"the run: {config.epochs} epochs of {steps_per_epoch} steps, {relabellings} relabellings of {config.num_heads} head(s), the last after "
        f"training: about {sum(part.hours for part in parts):.2g} hours here, likely less (small batches are slow)"
    )
    print("hours: " + ", ".join(f"{part.name} {part.hours:.2g}" for part in parts))
    _print_memory(experiment, counts, plan, protocol)


def _stand_in(config: SelaConfig) -> tuple[SelaConfig, _Counts | None]:
    """Returns the settings with fewer synthetic images, and the number that there would be; None if the data set is not made smaller."""
    wanted = synthetic_count(config.dataset)
    least = int(2 * max(config.num_clusters, config.batch_size, _FEW) / (1 - config.eval_fraction)) + 1000
    if wanted is None or wanted <= least:
        return config, None
    fewer = dataclasses.replace(config, dataset=f"synthetic:{least}")
    if config.eval_dataset:
        return fewer, _Counts(wanted, None)
    held_out = sum(is_held_out(str(row), config.eval_fraction) for row in range(wanted))
    return fewer, _Counts(wanted - held_out, held_out)


def _seconds_of_looking(experiment: Experiment, few: int) -> float:
    """Returns the seconds of inference for one image."""
    data, strategy = experiment.data, experiment.strategy
    inference = BatchedInference(cut_at_heads(experiment.model), strategy)

    def seconds(count: int) -> float:
        batches = inference_batches(data.train.take(np.arange(count)), size=data.size, batch_size=few)

        def once() -> None:
            inference.collect(batches, count)

        return min(_second_time(once)[1], _seconds(once))

    many = min(_MANY * few, len(data.train))
    return _seconds_each(few, seconds(few), many, seconds(many))


def _seconds_each(few: int, of_few: float, many: int, of_many: float) -> float:
    """Returns the seconds of one of many things, without what they have in common: from the difference to the seconds of few.

    Where a busy machine made few of them take as long, the seconds of many alone tell: too much rather than nothing.
    """
    return (of_many - of_few) / (many - few) if many > few and of_many > of_few else of_many / many


def _second_time(function: Callable[[], Any]) -> tuple[Any, float]:
    """(what the first call returned, the seconds of the second, in which nothing is compiled)."""
    found = function()
    return found, _seconds(function)


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _transport(config: SelaConfig, plan: MemoryPlan, rows: int, width: int) -> tuple[Assignment, float]:
    """Labels of one head, of random inputs and weights that are kept as the run's would be."""
    random = np.random.default_rng(config.seed)
    logits = LinearLogits(
        random.normal(size=(rows, width)).astype(np.float32),
        random.normal(scale=1 / np.sqrt(width), size=(width, config.num_clusters)).astype(np.float32),
        np.zeros(config.num_clusters, np.float32),
    )
    entries = rows * config.num_clusters
    # The limit that gives a problem of this size the same form of log-probabilities as the plan of the run.
    stored = BYTES_STORED[usual_storage(config.transport_tolerance)] * entries
    limit = 0 if plan.form == "computed" else plan.log_probs_bytes(rows, config.num_clusters) + stored
    solve = functools.partial(
        assign_labels,
        logits,
        lam=config.lam,
        tolerance=config.transport_tolerance,
        exact_balance=config.exact_balance,
        memory_limit=limit,
    )
    solve(max_iterations=1)
    start = time.perf_counter()
    return solve(max_iterations=config.transport_max_iterations), time.perf_counter() - start


def _evaluation(experiment: Experiment, protocol: EvaluationProtocol, per_image: float, relabellings: int) -> list[_Part]:
    """The verdict on the trained and the untrained network, agreement with the classes in training, and the report's own passes."""
    config, data = experiment.config, experiment.data
    n, m = protocol.training_size, protocol.held_out_size
    classes = _num_classes(data)
    judged = classes > 0
    parts = [_Part("looking at images", 2, per_image * (n * (judged or config.report) + m))]
    if not judged or protocol.kind == "none":
        return parts
    width = int(experiment.model.get_layer(EMBEDDING).output.shape[-1])
    random = np.random.default_rng(config.seed)

    def vectors(count: int) -> tuple[np.ndarray, np.ndarray]:
        return random.normal(size=(count, width)).astype(np.float32), np.arange(count) % classes

    # One pass of queries over a bank, and a few iterations, are timed: the real ones take in proportion.
    bank, queries = vectors(max(min(n, 2000), classes)), vectors(min(m, 500))
    _, knn = _second_time(lambda: knn_accuracy(*bank, *queries))
    _, few = _second_time(lambda: linear_probe_accuracy(*bank, *queries, max_iterations=2))
    _, many = _second_time(lambda: linear_probe_accuracy(*bank, *queries, max_iterations=7))
    probe = _seconds_each(2, few, 7, many) * protocol.max_iterations * n / len(bank[0])
    clusters = random.permutation(np.arange(n) % config.num_clusters)
    _, agreement = _second_time(lambda: cluster_metrics(np.arange(n) % classes, clusters))
    return [
        *parts,
        _Part("kNN", 2, knn * n / len(bank[0]) * m / len(queries[0])),
        _Part("linear probes, at most", 2, probe),
        _Part("agreement with classes", (relabellings + 3) * config.num_heads, agreement),
    ]


def _num_classes(data: Data) -> int:
    """0 where the verdict has no classes to judge by."""
    if data.train.classes is None or data.held_out.classes is None:
        return 0
    return int(data.train.classes.max()) + 1


def _print_memory(experiment: Experiment, counts: _Counts, plan: MemoryPlan, protocol: EvaluationProtocol) -> None:
    """Prints what is held at once in each phase of a run."""
    config, data, model = experiment.config, experiment.data, experiment.model
    own = sum(0 if part.images is None else part.images.nbytes for part in (data.train, data.held_out))
    # LAMB keeps two moments of each weight.
    network = (4 if config.optimizer == "lamb" else 3) * 4 * model.count_params()
    libraries = _resident_bytes() - 2 * own - network
    images = 0 if counts.train != len(data.train) else 2 * own
    outputs = [int(np.prod(layer.output.shape[1:])) for layer in model.layers if hasattr(layer.output, "shape")]
    table = (8 * 4 + 8 * 2) * config.num_heads * counts.train
    held = {"libraries": libraries, "images": images, "labels": table, "network, gradients and momentum": network}
    entries = counts.train * config.num_clusters
    stored = BYTES_STORED[usual_storage(config.transport_tolerance)] * entries if plan.form != "computed" else 0
    listed = min(plan.rest, min(_LISTED, config.num_clusters) * BYTES_PER_CANDIDATE * counts.train)
    head_inputs = 4 * int(model.get_layer(HEADS).input.shape[-1]) * counts.train
    embedding, classes = int(model.get_layer(EMBEDDING).output.shape[-1]), _num_classes(data)
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
    print("memory, GiB: " + ", ".join(f"{name} {size / _GIB:.2f}" for name, size in held.items() if size))
    for name, taken in phases.items():
        print(f"  also, in {name}: " + ", ".join(f"{what} {size / _GIB:.2f}" for what, size in taken.items()))
    worst = max(phases, key=lambda name: sum(phases[name].values()))
    peak = sum(held.values()) + sum(phases[worst].values())
    print(f"peak of memory about {peak / _GIB:.2f} GiB, in {worst}; label passes may take {config.label_memory:g} (`label_memory`)")


def _resident_bytes() -> int:
    """Memory of this process now."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
