"""The cost of sharing a training: `python -m benchmarks.scaling [--goals]`, one process, two logical devices, two and three workers.

Each row is a training of Fashion-MNIST (ResNet-8, K = 128, three heads) by one device, by two logical devices of one process, or by workers on
this machine that TF_CONFIG joins; and, without images, the transport of features (`--rows` x `--clusters`, D = 64). For each worker: the
processor seconds of an optimizer step, of a label pass and of the transport of all heads, the messages of a relabelling and their bytes. Wall
clock says little, as all workers share the processors of this machine. A worker's seconds are those of the worker that takes most, medians
over `--repeats`. `--goals` prints each goal as reached or missed, and ends with 1 on a miss.

`--views` prints how many views a core makes of JPEG files of ImageNet's size. `--model` prints, without measuring, what ImageNet and a billion
images would take on graphics cards, from unit costs (docs/scaling.md).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from benchmarks.measuring import Checked, print_goals
from sela_tf.reporting.markdown import markdown

ROOT = pathlib.Path(__file__).parent.parent
_FLAGS = [
    "--dataset=idx:/usr/share/datasets/fashion-mnist", "--image_size=28", "--backbone=resnet8", "--num_heads=3", "--num_clusters=128",
    "--batch_size=252", "--epochs=1", "--num_relabellings=1", "--evaluate=none", "--noreport", "--monitor_examples=0",
]  # fmt: skip
# Of the training: one device, two logical ones, workers. The batch divides by all of them.
PLACES = {"one device": (1, 1), "two devices": (1, 2), "two workers": (2, 1), "three workers": (3, 1)}
_STEPS, _WARM_STEPS = 12, 3
_MOST_SHARE = 0.6
_DIMENSIONS, _FILES = 64, 600


class Sum(NamedTuple):
    """The processor time and the messages that a part took on one worker."""

    seconds: float
    """Processor seconds."""
    messages: int
    bytes: int


@contextlib.contextmanager
def _taken(shards: Any, found: list[Sum]) -> Iterator[None]:
    """Appends what the context takes."""
    before = time.process_time(), getattr(shards, "num_messages", 0), getattr(shards, "num_bytes", 0)
    yield
    after = time.process_time(), getattr(shards, "num_messages", 0), getattr(shards, "num_bytes", 0)
    found.append(Sum(*(now - then for now, then in zip(after, before, strict=True))))


def _median(found: list[Sum]) -> Sum:
    """Returns the median of each figure, but of the first, in which functions are compiled."""
    seconds, messages, sizes = zip(*found[1:], strict=True)
    return Sum(float(np.median(seconds)), int(np.median(messages)), int(np.median(sizes)))


def measure_training(repeats: int, devices: int) -> dict[str, Sum]:
    """The parts of a training on this worker."""
    # TensorFlow is started by the workers alone.
    from absl import flags as absl_flags

    from sela_tf.cli import flags
    from sela_tf.settings.training import SelaConfig
    from sela_tf.training.devices import cluster_to_join, devices_of
    from sela_tf.training.experiment import Experiment

    values = absl_flags.FlagValues()
    flags.define(values, SelaConfig)
    flags.parse(values, ["scaling", *_FLAGS, *([f"--logical_cpus={devices}"] if devices > 1 else [])])
    config = flags.settings(values, SelaConfig)
    steps: list[Sum] = []
    transports: list[Sum] = []
    relabellings: list[Sum] = []
    with devices_of(config, cluster_to_join(config.strategy), timeout=300) as found:
        shards = found.shards
        experiment = Experiment(config, found.strategy, shards=shards)
        labelling = experiment.labelling
        labelling.set_model(experiment.model)
        plain = labelling.assign

        def assign(*arguments: Any, **options: Any) -> Any:
            with _taken(shards, heads):
                return plain(*arguments, **options)

        labelling.assign = assign
        batches = iter(experiment.distributed(experiment.views(0, _WARM_STEPS + (repeats + 1) * _STEPS)))
        for _ in range(_WARM_STEPS):
            float(experiment.take_step(next(batches))["loss"])
        for _ in range(repeats + 1):
            with _taken(shards, steps):
                for _ in range(_STEPS):
                    loss = experiment.take_step(next(batches))["loss"]
                float(loss)
        for _ in range(repeats + 1):
            heads: list[Sum] = []
            with _taken(shards, relabellings):
                labelling.compute(0)
            transports.append(Sum(*map(sum, zip(*heads, strict=True))))
    per_step = [each._replace(seconds=each.seconds / _STEPS) for each in steps]
    passes = [
        Sum(whole.seconds - part.seconds, whole.messages - part.messages, whole.bytes - part.bytes)
        for whole, part in zip(relabellings, transports, strict=True)
    ]
    return {
        "step": _median(per_step),
        "label pass": _median(passes),
        "transport": _median(transports),
        "relabelling": _median(relabellings),
    }


def measure_transport(repeats: int, rows: int, clusters: int) -> dict[str, Sum]:
    """The transport of features on this worker, which has its share of the rows."""
    from sela_tf.settings.training import SelaConfig
    from sela_tf.training.devices import cluster_to_join, devices_of
    from sela_tf.transport.assignment import assign_labels
    from sela_tf.transport.linear_logits import LinearLogits

    found: list[Sum] = []
    with devices_of(SelaConfig(dataset="python:"), cluster_to_join("auto"), timeout=300) as devices:
        shards = devices.shards
        rng = np.random.default_rng(0)
        centres = rng.normal(size=(clusters, _DIMENSIONS)).astype(np.float32)
        classes = rng.zipf(1.5, rows) % clusters
        own = slice(rows * shards.index // shards.count, rows * (shards.index + 1) // shards.count)
        noise = np.random.default_rng(shards.index + 1).standard_normal((own.stop - own.start, _DIMENSIONS), np.float32)
        features = centres[classes[own]] + noise
        logits = LinearLogits(features, centres.T / _DIMENSIONS**0.5, np.zeros(clusters, np.float32))
        for _ in range(repeats + 1):
            with _taken(shards, found):
                solved = assign_labels(logits, memory_limit=0.0, shards=shards)
            assert solved.converged
    return {"transport": _median(found)}


def print_views() -> None:
    """Prints the training views and clean ones that a core makes in a second, of files that are decoded each time."""
    from benchmarks.ingestion import make_folder
    from sela_tf.settings.training import SelaConfig
    from sela_tf.training.cost import seconds_of_drawing
    from sela_tf.training.devices import prepare_devices
    from sela_tf.training.experiment import Experiment

    with tempfile.TemporaryDirectory() as directory:
        images = pathlib.Path(directory) / "images"
        # As many pixels as 500 x 375.
        make_folder(images, _FILES, 433, "jpeg")
        config = SelaConfig(
            dataset=f"folder:{images}", image_size=224, cache_images=False, backbone="resnet18", width=8, num_clusters=10, num_heads=1,
            batch_size=32, epochs=40, eval_fraction=0.1, num_relabellings=1,
        )  # fmt: skip
        experiment = Experiment(config, prepare_devices(config))
        training = seconds_of_drawing(experiment)[1] / experiment.own_views
        clean = []
        for number in range(3):
            start = time.process_time()
            for _ in experiment.label_views(number, batch_size=100):
                pass
            clean.append((time.process_time() - start) / len(experiment.data.train))
    print(
        f"JPEG of 433 x 433 to 224 x 224: {1 / training:.0f} training views and {1 / np.median(clean):.0f} clean ones a second and core"
    )


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("localhost", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def _most(workers: int, *arguments: str) -> dict[str, Sum]:
    """The figures of the worker that takes most processor seconds, for each part."""
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(workers)]}
    with tempfile.TemporaryDirectory() as directory:
        files, processes = [], []
        for index in range(workers):
            files.append(pathlib.Path(directory) / f"{index}.json")
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "no_proxy": "localhost"}
            if workers > 1:
                environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
            command = [sys.executable, "-m", "benchmarks.scaling", f"--worker={files[-1]}", *arguments]
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL))
        if sum(process.wait() for process in processes):
            sys.exit("a worker failed")
        found = [json.loads(file.read_text()) for file in files]
    return {part: max((Sum(*worker[part]) for worker in found), key=lambda each: each.seconds) for part in found[0]}


def _rows(figures: dict[str, dict[str, Sum]], alone: dict[str, Sum]) -> list[list[str]]:
    return [
        [
            place, part, f"{found.seconds:.3g}", f"{found.seconds / alone[part].seconds:.2f}",
            *([str(found.messages), f"{found.bytes / 1e3:,.0f}"] if found.messages else ["", ""]),
        ]
        for place, parts in figures.items()
        for part, found in parts.items()
    ]  # fmt: skip


def goals(training: dict[str, dict[str, Sum]], transport: dict[str, dict[str, Sum]]) -> list[Checked]:
    """The goals of the issue, with what was reached."""
    checked = []
    for name, figures, part in (
        ("relabelling of Fashion-MNIST", training, "relabelling"),
        ("transport of features", transport, "transport"),
    ):
        share = figures["two workers"][part].seconds / figures["one device"][part].seconds
        wanted = f"{name}: a worker of two takes at most {_MOST_SHARE} of one process's processor seconds"
        checked.append((wanted, share <= _MOST_SHARE, f"{share:.2f}"))
    return checked


class Card(NamedTuple):
    """A graphics card, by its data sheet."""

    name: str
    bytes_per_second: float
    """The bandwidth of its memory."""
    float32: float
    """Products of float32, floating-point operations a second."""
    memory: float
    """Bytes."""


# NVIDIA's data sheet of H200 SXM.
CARD = Card("H200", 4.8e12, 67e12, 141e9)
# Of the data sheet, what passes of this kind reach; an assumption, which tools/gpu_check.py measures.
_REACHED = 0.6
# Passes of a warm solve by Anderson-accelerated Sinkhorn at tolerance 1e-3: exact ones, those over stored rows, and scans of the rounding.
_EXACT, _STORED, _SCANS = 3, 25, 4
# Messages of a pass: the sums, and the first worker's potentials.
_MESSAGES_A_PASS = 3
# Seconds of a message between machines: TensorFlow's collectives on loopback take 1 to 2 ms.
_MESSAGE, _NETWORK = 2e-3, 25e9 / 8
# Clean views of 500 x 375 JPEG, cut to 224, a second and core: measured (docs/scaling.md). Cores of a machine with eight cards.
_LOOKS_A_CORE, _CORES = 323, 160
# The features of a ResNet-50, and the images a second that its forward pass takes in half precision on such a card; an assumption.
_FEATURES, _IMAGE_RATE = 2048, 3000.0


def model_rows(images: float, clusters: int, heads: int, cards: int, *, image_rate: float) -> list[list[str]]:
    """The parts of one relabelling: what is moved, computed, sent, and how long that takes.

    Args:
        images: N.
        clusters: K.
        heads: T.
        cards: graphics cards, eight a machine.
        image_rate: images a second that the network's forward pass takes on one card.
    """
    machines = max(1, cards // 8)
    entries = images * clusters / cards
    exact, stored = 4 * entries, 2 * entries
    readings = _EXACT + _SCANS
    bandwidth = _REACHED * CARD.bytes_per_second
    if exact + stored < 0.8 * CARD.memory:
        form, seconds = "kept", heads * (readings * exact + _STORED * stored) / bandwidth
    else:
        # Every pass multiplies the features by the head.
        form, seconds = "computed", heads * (readings + _STORED) * 2 * _FEATURES * entries / (_REACHED * CARD.float32)
    messages = heads * _MESSAGES_A_PASS * (readings + _STORED) if machines > 1 else 0
    # Sums of K numbers, and the labels of all images in float64.
    sent = messages * 8 * clusters + heads * 8 * images
    network = messages * _MESSAGE + sent / _NETWORK if machines > 1 else 0.0
    return [
        ["log-probabilities of a head, GB a card", f"{exact / 1e9:,.1f}, {form}"],
        [f"features (D = {_FEATURES}), GB a machine", f"{images * _FEATURES * 4 / machines / 1e9:,.1f}"],
        ["label table (int32), GB on every card", f"{images * heads * 4 / 1e9:,.2f}"],
        ["label pass: decoding, s", f"{images / machines / (_LOOKS_A_CORE * _CORES):,.0f}"],
        ["label pass: network, s", f"{images / cards / image_rate:,.0f}"],
        ["transport of all heads, s", f"{seconds:,.1f}"],
        ["messages", f"{messages:,}" if messages else "none"],
        ["MB that a machine sends", f"{sent / 1e6:,.0f}" if messages else "none"],
        ["sending, s", f"{network:,.1f}"],
    ]


def print_model() -> None:
    """Prints the cost model as Markdown."""
    cases = {
        "ImageNet, 1 card": (1.28e6, 3000, 10, 1), "8 cards": (1.28e6, 3000, 10, 8), "64 cards": (1.28e6, 3000, 10, 64),
        "a billion, K = 30,000, T = 1, 64 cards": (1e9, 30_000, 1, 64),
    }  # fmt: skip
    columns = {name: model_rows(*case, image_rate=_IMAGE_RATE) for name, case in cases.items()}
    rows = [[first[0], *(column[i][1] for column in columns.values())] for i, first in enumerate(columns["ImageNet, 1 card"])]
    print(markdown([f"one relabelling, on {CARD.name}", *columns], rows))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--clusters", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--goals", action="store_true")
    parser.add_argument("--model", action="store_true")
    parser.add_argument("--views", action="store_true")
    parser.add_argument("--results", type=pathlib.Path, help="also write the figures here, as JSON")
    parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--devices", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model or options.views:
        (print_model if options.model else print_views)()
        return 0
    if options.worker:
        measure: Callable[[], dict[str, Sum]] = functools.partial(
            measure_transport, options.repeats, options.rows, options.clusters
        )
        if options.devices:
            measure = functools.partial(measure_training, options.repeats, options.devices)
        options.worker.write_text(json.dumps(measure()))
        return 0
    common = [f"--repeats={options.repeats}", f"--rows={options.rows}", f"--clusters={options.clusters}"]
    training = {name: _most(workers, f"--devices={devices}", *common) for name, (workers, devices) in PLACES.items()}
    print(
        markdown(["training", "part", "processor s a worker", "of one", "messages", "kB"], _rows(training, training["one device"])),
        flush=True,
    )
    transport = {name: _most(workers, *common) for name, (workers, devices) in PLACES.items() if devices == 1}
    print(
        markdown(
            [f"{options.rows:,} x {options.clusters}", "part", "processor s a worker", "of one", "messages", "kB"],
            _rows(transport, transport["one device"]),
        )
    )
    if options.results:
        options.results.write_text(json.dumps({"training": training, "transport": transport}, indent=1))
    return print_goals(goals(training, transport)) if options.goals else 0


if __name__ == "__main__":
    sys.exit(main())
