"""A check of the transport on a graphics card: `python -m tools.gpu_check`, five minutes, and a table for docs/scaling.md.

No release was tried on a graphics card before this script was run there. It trains the digits, relabels Fashion-MNIST on the card and on the
processor, solves a transport of ImageNet's size, and measures which share of the card's bandwidth the passes reach. It ends with 1 where
something is not as on the processor.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
_FASHION = pathlib.Path("/usr/share/datasets/fashion-mnist")
_LEAST_SAME = 0.999
"""The share of labels that are those of the processor, at a tolerance that leaves the transport no choice."""
_KNN_OF_DIGITS = 0.95


def main() -> int:
    """Runs the checks and prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_280_000, help="N of the large solve")
    parser.add_argument("--clusters", type=int, default=3000, help="K of the large solve")
    parser.add_argument("--memory", type=float, default=60.0, help="GiB of each card that the large solve may take")
    parser.add_argument("--images", type=int, default=60_000, help="of Fashion-MNIST")
    parser.add_argument("--epochs", type=int, default=0, help="of the digits; 0 for the recipe's")
    parser.add_argument("--pretend", action="store_true", help="use the processor as if it were a card, to try this script")
    options = parser.parse_args()
    import tensorflow as tf

    from sela_tf.transport.placement import Placement, placed, present

    cards = tf.config.list_physical_devices("GPU")
    if not cards and not options.pretend:
        print(
            "TensorFlow sees no graphics card: pip install 'sela-tf[gpu]', and look at what `python -c \"import tensorflow as tf; "
            "tf.config.list_physical_devices('GPU')\"` says",
            file=sys.stderr,
        )
        return 2
    # Before TensorFlow takes the card's memory for this process.
    digits = _digits(options.epochs)
    for card in cards:
        tf.config.experimental.set_memory_growth(card, True)
    place = present() if cards else Placement(("CPU:0",), on_cards=True, chunk_entries=2**20)
    names = [tf.config.experimental.get_device_details(card).get("device_name", card.name) for card in cards] or [
        "processor, as if a card"
    ]
    with placed(place):
        fashion = _relabelling(options.images, Placement())
        large = _large_solve(options.rows, options.clusters, options.memory * 2**30)
        copying = _copy_rate(place)
    rows: list[tuple[str, str, bool | None]] = [
        ("device", f"{len(place.devices)} x {names[0]}, TensorFlow {tf.__version__}", None),
        (
            "digits: kNN",
            f"{digits['knn']:.3f} in {digits['seconds']:.0f} s",
            digits["knn"] >= _KNN_OF_DIGITS or bool(options.epochs),
        ),
        ("Fashion-MNIST, label pass of a ResNet-8, s", f"{fashion['pass']:.2f}", None),
        ("the same, transport (K = 128), s: card, processor", f"{fashion['card']:.2f}, {fashion['processor']:.2f}", None),
        ("the same, labels that are the processor's", f"{100 * fashion['same']:.2f} %", fashion["same"] >= _LEAST_SAME),
        (
            f"{options.rows:,} x {options.clusters}: solve and rounding, s",
            f"{large['first']:.1f}, again {large['again']:.1f}",
            None,
        ),
        ("the same, passes", f"{large['iterations']}, marginal error {large['error']:.1e}", large["converged"]),
        (
            "the same, sizes of the clusters",
            f"{large['smallest']} to {large['largest']}",
            large["largest"] - large["smallest"] <= 1,
        ),
        ("one exact pass, ms and GB/s", f"{1e3 * large['pass']:.1f}, {large['rate'] / 1e9:.0f}", None),
        ("copying on the card, GB/s", f"{copying / 1e9:.0f}", None),
        ("share of it that the pass reaches", f"{100 * large['rate'] / copying:.0f} %", None),
        ("peak of the card's memory, GB", f"{large['peak'] / 1e9:.1f}" if cards else "not known", None),
    ]
    print("\n| what | figure |\n|---|---|")
    for name, figure, is_right in rows:
        print(f"| {name} | {figure}{' **WRONG**' if is_right is False else ''} |")
    return int(any(is_right is False for *_, is_right in rows))


def _digits(epochs: int) -> dict[str, float]:
    """Returns kNN and seconds of the bundled recipe, in a process of its own, as a user would run it."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as directory:
        flags = [f"--epochs={epochs}"] if epochs else []
        command = [sys.executable, "-m", "sela_tf.train", "--recipe=digits", f"--workdir={directory}", "--noreport", *flags]
        subprocess.run(
            command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "TF_FORCE_GPU_ALLOW_GROWTH": "true"}
        )
        results = json.loads((pathlib.Path(directory) / "results.json").read_text())
    return {"knn": results["trained"]["knn"], "seconds": time.perf_counter() - start}


def _seconds(function: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    found = function()
    return found, time.perf_counter() - start


def _images(count: int) -> np.ndarray:
    """Returns images of Fashion-MNIST, uint8 [N, 28, 28, 1]; random ones where it is not installed."""
    from sela_tf.data.sources import SourceOptions, load_source

    if _FASHION.exists():
        return np.asarray(load_source(f"idx:{_FASHION}", SourceOptions()).train.images)[:count]
    print(f"{_FASHION} is not there (make system-deps): random images instead")
    return np.random.default_rng(0).integers(0, 256, (count, 28, 28, 1), np.uint8)


def _relabelling(count: int, processor: Any) -> dict[str, float]:
    """Returns the figures of a label pass, and of the transport of its features on the card and on the processor."""
    import tensorflow as tf

    import sela_tf
    from sela_tf.models.build import cut_at_heads
    from sela_tf.models.inference import BatchedInference
    from sela_tf.transport.linear_logits import LinearLogits
    from sela_tf.transport.placement import placed
    from sela_tf.transport.sinkhorn import sinkhorn

    tf.keras.utils.set_random_seed(0)
    images = _images(count)
    model = sela_tf.build_model("resnet8", image_shape=(28, 28, 1), num_heads=1, num_clusters=128, hidden_units=256)
    batches = tf.data.Dataset.from_tensor_slices((images, np.arange(len(images)))).batch(1000)
    batches = batches.map(lambda image, index: (tf.cast(image, tf.float32), index)).prefetch(2)
    inference = BatchedInference(cut_at_heads(model))
    inference.fill_moving_statistics(batches, num_batches=20)
    features = inference.collect(batches, len(images))
    _, seconds = _seconds(lambda: inference.collect(batches, len(images)))
    # An untrained network hardly tells images apart; sharper logits, as of a trained one.
    features = (features - features.mean(axis=0)) / (features.std() + 1e-6)
    kernel = np.random.default_rng(0).normal(size=(features.shape[1], 128)).astype(np.float32) / features.shape[1] ** 0.5
    log_probs = LinearLogits(features, kernel, np.zeros(128, np.float32)).log_probs()

    def solve() -> Any:
        return sinkhorn(log_probs, tolerance=1e-5)

    solve()
    on_card, card = _seconds(solve)
    with placed(processor):
        solve()
        on_processor, other = _seconds(solve)
    return {"pass": seconds, "card": card, "processor": other, "same": float((on_card.labels == on_processor.labels).mean())}


def _large_solve(num_rows: int, num_clusters: int, limit: float) -> dict[str, Any]:
    """Returns the figures of a cold solve of clustered logits with exact balance, twice, and one exact pass."""
    import tensorflow as tf

    from sela_tf.transport.assignment import assign_labels
    from sela_tf.transport.linear_logits import LinearLogits
    from sela_tf.transport.rows import Rows
    from sela_tf.transport.table import Table

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(num_clusters, 64)).astype(np.float32)
    features = centres[rng.integers(num_clusters, size=num_rows)] + rng.standard_normal((num_rows, 64), np.float32)
    logits = LinearLogits(features, centres.T / 8, np.zeros(num_clusters, np.float32))
    solved, first = _seconds(lambda: assign_labels(logits, memory_limit=limit))
    solved, again = _seconds(lambda: assign_labels(logits, memory_limit=limit))
    rows = Rows(Table(logits.checked(), form="float32", keep_bytes=limit), lam=25.0)
    zeros = np.zeros(num_clusters)
    rows.measure(zeros)
    seconds = min(_seconds(lambda: rows.measure(zeros))[1] for _ in range(5))
    memory = [tf.config.experimental.get_memory_info(device.name[-5:]) for device in tf.config.list_logical_devices("GPU")]
    return {
        "first": first, "again": again, "iterations": solved.num_iterations, "error": solved.marginal_error, "converged": solved.converged,
        "smallest": int(solved.sizes.min()), "largest": int(solved.sizes.max()), "pass": seconds,
        "rate": 4.0 * num_rows * num_clusters / seconds, "peak": max((each["peak"] for each in memory), default=0),
    }  # fmt: skip


def _copy_rate(place: Any) -> float:
    """Returns the bytes a second that a device reads and writes when it copies a gigabyte, of all devices together."""
    import tensorflow as tf

    with place.scope(0):
        values = tf.zeros([2**28 if place.chunk_entries > 2**22 else 2**24])

        def copy() -> None:
            (values + 1.0)[:1].numpy()

        copy()
        seconds = min(_seconds(copy)[1] for _ in range(5))
    return 2.0 * 4 * len(values) / seconds * place.num_memories


if __name__ == "__main__":
    sys.exit(main())
