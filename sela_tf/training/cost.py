"""The time that a run takes: what each of its parts costs once, measured by doing a little of it, and how often it happens."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from sela_tf.data.batch_sizes import LABEL_PASS_BATCH
from sela_tf.evaluation.clustering import cluster_metrics
from sela_tf.evaluation.judging import PROBE_ITERATIONS
from sela_tf.evaluation.knn import knn_accuracy
from sela_tf.evaluation.linear_probe import linear_probe_accuracy
from sela_tf.evaluation.protocol import SMALL_HELD_OUT, EvaluationProtocol, evaluation_protocol
from sela_tf.evaluation.raw_pixels import SIDE
from sela_tf.models.build import cut_at_heads
from sela_tf.models.inference import BatchedInference
from sela_tf.models.layer_names import EMBEDDING, HEADS
from sela_tf.settings.choices import relabellings_of
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.experiment import Experiment
from sela_tf.training.images import Data
from sela_tf.transport.assignment import Assignment, MemoryPlan, assign_labels, plan_memory
from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.sinkhorn import usual_storage
from sela_tf.transport.solve import BYTES_STORED

TRAINING, LABEL_PASSES, TRANSPORT, MONITORS = "training", "label passes", "transport", "monitors"
OF_TRAINING = (TRAINING, LABEL_PASSES, TRANSPORT, MONITORS)
"""Parts that are done by and by while training goes on."""
GIB = 2**30
# Rows of the transport that is tried, at least, so that its fixed cost is a small part.
ROWS = 4096
# The first steps, in which TensorFlow compiles and the buffers fill, do not count. Then at most 40 steps, a tenth of the run or 2 s are measured.
_FIRST_STEPS, _MOST_STEPS, _SHARE_OF_STEPS, _SECONDS = 3, 40, 0.1, 2.0
_FIRST_BATCHES, _SECONDS_OF_DRAWING = 8, 1.0
_PASSES_COMPILED, _SECONDS_OF_REPORT = 6, 3.0
"""Passes of an evaluation that are the first of their network and size of batches; what matplotlib takes, whatever the run."""
_ITERATIONS_OF_PROBE = 0.6
"""The share of the iterations allowed that a linear probe takes, as a rule."""


class Part(NamedTuple):
    """A part of the run: how often it happens, and how long it takes each time."""

    name: str
    times: float
    seconds: float

    @property
    def total(self) -> float:
        """Seconds in all."""
        return self.times * self.seconds


class Rates(NamedTuple):
    """The seconds of what happens over and over."""

    image_trained: float
    """One image of an optimizer step."""
    image_seen: float
    """One image of a label pass or of an evaluation."""
    row: float
    """One image in the transport of one head."""
    batch_drawn: float = 0.0
    """The views of one batch, while nothing else is done."""
    view_drawn: float = 0.0
    """One view, in seconds of a core."""
    compiling: float = 0.0
    """A pass that is the first of its network, beyond what it takes later."""


def measured_rates(experiment: Experiment) -> Rates:
    """Returns the rates of a run, by steps and passes as it will have them; the experiment is put back to where it was.

    The data decide about the time of a step, too, so that steps are taken on the run's own views.
    """
    config, kept = experiment.config, experiment.state()
    seconds = list(_steps(experiment))
    experiment.restore(kept)
    data = experiment.data
    count = min(2 * LABEL_PASS_BATCH, len(data.train))
    plan = plan_memory(len(data.train), config.num_clusters, config.label_memory * GIB, tolerance=config.transport_tolerance)
    rows = max(min(len(data.train), 4 * ROWS), 2 * config.num_clusters)
    _, transport = random_transport(config, plan, rows, int(experiment.model.get_layer(HEADS).input.shape[-1]))
    of_pass, compiling = seconds_of_pass(experiment, count, LABEL_PASS_BATCH)
    drawn, of_cores = seconds_of_drawing(experiment)
    return Rates(
        float(np.median(seconds)) / config.batch_size,
        of_pass / count,
        transport / rows,
        drawn,
        of_cores / experiment.own_views,
        compiling,
    )


def _steps_measured(experiment: Experiment) -> int:
    """Returns the most steps that are measured: few where the run itself is short."""
    return min(_MOST_STEPS, max(round(_SHARE_OF_STEPS * experiment.last_step), 1))


def seconds_of_drawing(experiment: Experiment, *, batch_size: int | None = None) -> tuple[float, float]:
    """Returns the seconds in which the views of a batch are made, after the first ones, which fill the buffers, and those of all cores.

    `batch_size` is that of the settings if None.
    """
    last = min(_FIRST_BATCHES + _steps_measured(experiment), max(experiment.last_step, 1))
    start, of_cores, counted = time.perf_counter(), time.process_time(), 0
    for number, _ in enumerate(experiment.views(0, last, batch_size=batch_size)):
        if number < min(_FIRST_BATCHES, last - 1):
            start, of_cores = time.perf_counter(), time.process_time()
            continue
        counted += 1
        if time.perf_counter() - start > _SECONDS_OF_DRAWING:
            break
    counted = max(counted, 1)
    return (time.perf_counter() - start) / counted, (time.process_time() - of_cores) / counted


def _steps(experiment: Experiment) -> Iterator[float]:
    """Takes a few optimizer steps, and yields the seconds of each one that counts, its wait for data included."""
    last = min(_FIRST_STEPS + _steps_measured(experiment), max(experiment.last_step, 1))
    batches = iter(experiment.distributed(experiment.views(0, last)))
    began = time.perf_counter()
    for number in range(last):
        start = time.perf_counter()
        # The value is read, so that the step is over.
        float(experiment.take_step(next(batches))["loss"])
        now = time.perf_counter()
        if number == _FIRST_STEPS:
            began = start
        if number >= min(_FIRST_STEPS, last - 1):
            yield now - start
        if number > _FIRST_STEPS and experiment.shards.decide(now - began > _SECONDS):
            return


def parts_of_run(experiment: Experiment, rates: Rates, *, num_train: int, num_held_out: int) -> list[Part]:
    """Returns the parts of a run of the experiment's settings.

    Args:
        experiment: the experiment, perhaps of fewer images.
        rates: the seconds of what happens over and over.
        num_train: training images of the run.
        num_held_out: held-out images of the run.
    """
    config = experiment.config
    steps_per_epoch = num_train // config.batch_size
    # The last transport, by the final weights, is one more; so is the first of a run that continues another one.
    relabellings = len(experiment.schedule(steps_per_epoch)) + 1 + bool(config.continue_from)
    monitored = min(config.monitor_examples, num_train) + num_held_out if num_classes(experiment.data) else 0
    protocol = evaluation_protocol(config.evaluate, num_train, num_held_out, seed=config.seed)
    return [
        Part(TRAINING, config.epochs * steps_per_epoch, rates.image_trained * config.batch_size),
        Part(LABEL_PASSES, relabellings, rates.image_seen * num_train),
        Part(TRANSPORT, relabellings * config.num_heads, rates.row * num_train),
        Part(MONITORS, math.ceil(config.epochs / config.monitor_epochs), rates.image_seen * monitored),
        *_parts_of_evaluation(experiment, protocol, rates, relabellings),
        Part("report", 1, _SECONDS_OF_REPORT * config.report),
    ]


def fit_to_minutes(
    minutes: float, config: SelaConfig, parts: list[Part], *, relabellings_are_given: bool, spent: float = 0.0
) -> SelaConfig:
    """Returns the settings with the most epochs for which a run takes at most `minutes`.

    Args:
        minutes: the time that the run may take.
        config: the settings.
        parts: see `parts_of_run`, for these settings.
        relabellings_are_given: `num_relabellings` stays as it is; otherwise fewer epochs have fewer relabellings.
        spent: seconds that have passed.

    Raises:
        ConfigError: not even one epoch fits.
    """

    def relabellings(epochs: int) -> int:
        # Labels of another run are kept.
        return config.num_relabellings if relabellings_are_given or config.labels_from else relabellings_of(epochs)

    def seconds(epochs: int) -> float:
        shares = dict.fromkeys((TRAINING, MONITORS), epochs / config.epochs)
        shares |= dict.fromkeys((LABEL_PASSES, TRANSPORT), (relabellings(epochs) + 1) / (config.num_relabellings + 1))
        return spent + sum(part.total * shares.get(part.name, 1.0) for part in parts)

    if seconds(1) > 60 * minutes:
        raise ConfigError(
            f"`minutes={minutes:g}` is too short: one epoch and the rest take about {seconds(1) / 60:.2g} minutes here"
        )
    fits, too_many = 1, 2
    while seconds(too_many) <= 60 * minutes:
        fits, too_many = too_many, 2 * too_many
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if seconds(middle) <= 60 * minutes else (fits, middle)
    return dataclasses.replace(config, epochs=fits, num_relabellings=relabellings(fits))


def time_in_words(parts: list[Part], *, done: float = 0.0) -> str:
    """Returns the estimate of the time that a run still takes.

    Args:
        parts: see `parts_of_run`.
        done: the share of the training that is done.
    """
    left = {part.name: part.total * (1 - done if part.name in OF_TRAINING else 1) for part in parts}
    total = sum(left.values())
    longest = sorted(left, key=lambda name: -left[name])[:3]
    shown = ", ".join(f"{name} {left[name] / total:.0%}" for name in longest if left[name])
    return f"about {total / 60:.2g} minutes from here on this machine" + (f" ({shown})" if shown else "")


def seconds_of_pass(experiment: Experiment, count: int, batch_size: int) -> tuple[float, float]:
    """Returns the seconds of a label pass over `count` training images, the smaller of two measurements, and how much more the first took."""
    network = experiment.refresh()
    inference = BatchedInference(cut_at_heads(network), network.distribute_strategy)
    images = experiment.data.train.take(np.arange(count))

    def once() -> None:
        # The batches are made anew, as each pass does.
        inference.collect(experiment.label_views(0, images=images, batch_size=batch_size), count)

    first, *later = [_seconds(once) for _ in range(3)]
    return min(later), max(first - min(later), 0.0)


def seconds_each(few: int, of_few: float, many: int, of_many: float) -> float:
    """Returns the seconds of one of many things, without what they have in common: from the difference to the seconds of few.

    Where a busy machine made few of them take as long, the seconds of many alone tell: too much rather than nothing.
    """
    return (of_many - of_few) / (many - few) if many > few and of_many > of_few else of_many / many


def second_time(function: Callable[[], Any]) -> tuple[Any, float]:
    """Returns (what the first call returned, the seconds of the second, in which nothing is compiled)."""
    found = function()
    return found, _seconds(function)


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def random_transport(config: SelaConfig, plan: MemoryPlan, rows: int, width: int) -> tuple[Assignment, float]:
    """Returns labels of one head, of random inputs and weights that are kept as the run's would be; and the seconds that it took."""
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
        max_iterations=config.transport_max_iterations,
        exact_balance=config.exact_balance,
        memory_limit=limit,
    )
    start = time.perf_counter()
    assignment = solve()
    seconds = time.perf_counter() - start
    # A short first time was spent on compiling.
    return assignment, seconds if seconds > _SECONDS else _seconds(solve)


def _parts_of_evaluation(experiment: Experiment, protocol: EvaluationProtocol, rates: Rates, relabellings: int) -> list[Part]:
    """Returns the verdict on the trained and the untrained network, and agreement with the classes in training."""
    config, data = experiment.config, experiment.data
    n, m = protocol.training_size, protocol.held_out_size
    classes = num_classes(data)
    if protocol.kind == "none":
        return []
    parts = [
        Part("looking at images", 2, rates.image_seen * (n + m + 2 * min(m, SMALL_HELD_OUT))),
        Part("compiling", _PASSES_COMPILED, rates.compiling),
    ]
    if not classes:
        return parts
    width = int(experiment.model.get_layer(EMBEDDING).output.shape[-1])
    random = np.random.default_rng(config.seed)

    def vectors(count: int) -> tuple[np.ndarray, np.ndarray]:
        return random.normal(size=(count, width)).astype(np.float32), np.arange(count) % classes

    # One pass of queries over a bank, and a few iterations, are timed: the real ones take in proportion.
    bank, queries = vectors(max(min(n, 2000), classes)), vectors(min(m, 500))
    _, knn = second_time(lambda: knn_accuracy(*bank, *queries))
    _, few = second_time(lambda: linear_probe_accuracy(*bank, *queries, max_iterations=2))
    _, many = second_time(lambda: linear_probe_accuracy(*bank, *queries, max_iterations=7))
    probe = seconds_each(2, few, 7, many) * _ITERATIONS_OF_PROBE * protocol.max_iterations * n / len(bank[0])
    clusters = random.permutation(np.arange(n) % config.num_clusters)
    _, agreement = second_time(lambda: cluster_metrics(np.arange(n) % classes, clusters))
    # Raw pixels are judged, too: by as many values as they have, a small sample of the held-out images, and fewer iterations.
    pixels = int(np.prod([min(side, SIDE) for side in data.size])) * data.train.channels / width
    raw_iterations = min(PROBE_ITERATIONS / (_ITERATIONS_OF_PROBE * protocol.max_iterations), 1)
    return [
        *parts,
        Part("kNN", 2 + pixels * min(SMALL_HELD_OUT / m, 1), knn * n / len(bank[0]) * m / len(queries[0])),
        Part("linear probes", 2 + pixels * raw_iterations, probe),
        Part("agreement with classes", (relabellings + 3) * config.num_heads, agreement),
    ]


def num_classes(data: Data) -> int:
    """Returns the number of classes, 0 where the verdict has no classes to judge by."""
    if data.train.classes is None or data.held_out.classes is None:
        return 0
    return int(data.train.classes.max()) + 1
