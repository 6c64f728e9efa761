"""How fast is training? `python -m benchmarks.train_step`: sela_tf beside a PyTorch twin, in turns, in one process.

Images a second on --threads threads, medians of --rounds rounds: of the bare step (one batch in memory), of the step with the input pipeline
(random resized crops, flips, brightness, contrast), of the label pass, and of the run's own loop, beside the twin's step with its
input pipeline. The twin is PyTorch eager in channels-last, its
best on a CPU, and augments whole batches by grid_sample. Ratios are medians of the rounds' ratios. With --profile: where the time of the bare
step goes, by kind of operation. Nothing else should run on the machine meanwhile.
"""

from __future__ import annotations

import argparse
import collections
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

NUM_HEADS, NUM_CLUSTERS = 1, 128


class Workload(NamedTuple):
    backbone: str
    side: int
    channels: int
    batch: int
    hidden_units: int
    num_images: int = 8192


WORKLOADS = {
    "fashion_mnist.cfg": Workload("resnet8", 28, 1, 256, 256),
    "ResNet-18, 64 x 64": Workload("resnet18", 64, 3, 64, 0, 1024),
}
Measured = dict[str, Callable[[], int]]
"""By name: does some work, and returns the images that it did."""
Loop = Callable[[int, Callable[[], float]], list[tuple[float, float]]]
"""Rates of the run's own loop and of a peer, in turns."""


def sela_tf_work(work: Workload, images: np.ndarray, precision: str) -> tuple[Measured, Loop]:
    import keras
    import tensorflow as tf

    import sela_tf
    from sela_tf.cli.signals import Stop
    from sela_tf.data.augment import Augmentation
    from sela_tf.data.image_set import ImageSet
    from sela_tf.data.pipeline import inference_batches, training_batches
    from sela_tf.data.stores import Arrays
    from sela_tf.models.build import cut_at_heads
    from sela_tf.models.inference import BatchedInference
    from sela_tf.training.loop import Clock, TrainingLoop, step_function
    from sela_tf.training.optimizer import CoupledSGD

    labels = sela_tf.LabelTable(NUM_HEADS, NUM_CLUSTERS, len(images))
    model = sela_tf.build_model(
        work.backbone,
        image_shape=images.shape[1:],
        num_heads=NUM_HEADS,
        num_clusters=NUM_CLUSTERS,
        hidden_units=work.hidden_units,
        mean=[128.0],
        variance=[5000.0],
        dtype=precision,
    )
    optimizer = CoupledSGD(0.01, momentum=0.9, coupled_weight_decay=1e-5)
    optimizer.build(model.trainable_variables)
    model.compile(optimizer, loss=sela_tf.SelfLabelLoss(labels), jit_compile=False)
    strategy = tf.distribute.get_strategy()
    step = step_function(model, strategy, False)
    batch = tf.constant(images[: work.batch], tf.float32), tf.range(work.batch, dtype=tf.int64)
    views = Augmentation(0.3, saturation=0, hue=0, grayscale_probability=0)
    image_set = ImageSet(name="benchmark", channels=work.channels, store=Arrays(images), image_size=images.shape[1:3])
    options: dict[str, Any] = {"size": images.shape[1:3], "augmentation": views, "batch_size": work.batch, "seed": 0}
    steps = work.num_images // work.batch
    endless = iter(training_batches(image_set, **options, first_step=0, last_step=10**6))
    inference = BatchedInference(cut_at_heads(model))
    clean = inference_batches(image_set, size=images.shape[1:3], batch_size=4 * work.batch)

    def bare() -> int:
        for _ in range(steps // 2):
            loss = step(batch)["loss"]
        float(loss)
        return steps // 2 * work.batch

    def with_pipeline() -> int:
        for _ in range(steps):
            loss = step(next(endless))["loss"]
        float(loss)
        return steps * work.batch

    def label_pass() -> int:
        inference.collect(clean, len(images))
        return len(images)

    def loop(rounds: int, peer: Callable[[], float]) -> list[tuple[float, float]]:
        """One training of an epoch a round, after one in which its step is traced; the peer's rate is taken at the end of each."""
        pairs: list[tuple[float, float]] = []

        class Rates(keras.callbacks.Callback):
            def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
                self.start = time.perf_counter()

            def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
                own = steps * work.batch / (time.perf_counter() - self.start)
                pairs.append((own, peer()))

        last_step = (rounds + 1) * steps
        training = TrainingLoop(
            model=model,
            take_step=step_function(model, strategy, xla=False),
            steps_per_epoch=steps,
            log_every_steps=50,
            clock=Clock(),
        )
        training.run(
            training_batches(image_set, **options, first_step=0, last_step=last_step),
            first_step=0,
            last_step=last_step,
            callbacks=[Rates()],
            save=lambda step: None,
            stop=Stop(),
        )
        return pairs[1:]

    return {"bare step": bare, "step with input pipeline": with_pipeline, "label pass": label_pass}, loop


def pytorch_work(work: Workload, images: np.ndarray, precision: str) -> Measured:
    import torch
    from torch import nn
    from torch.nn import functional

    from benchmarks import torch_twin

    torch.manual_seed(0)
    features, width = torch_twin.backbone(work.backbone, work.channels)
    top = torch_twin.hidden_layer(width, work.hidden_units) if work.hidden_units else []
    heads = nn.Linear(work.hidden_units or width, NUM_CLUSTERS)
    model = nn.Sequential(features, *top, heads).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=1e-5)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()
    labels = torch.arange(len(images)) % NUM_CLUSTERS
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "mixed_bfloat16")

    def step(views: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = functional.cross_entropy(model(views), targets)
        loss.backward()
        optimizer.step()
        return loss

    one, targets = torch_twin.standardised(pixels[: work.batch].float()), labels[: work.batch]
    steps = work.num_images // work.batch

    def bare() -> int:
        model.train()
        for _ in range(steps // 2):
            loss = step(one, targets)
        loss.item()
        return steps // 2 * work.batch

    def order() -> Iterator[torch.Tensor]:
        return iter(torch.randperm(len(images)).split(work.batch))

    def with_pipeline() -> int:
        model.train()
        for indices in order():
            loss = step(torch_twin.standardised(torch_twin.views(pixels[indices].float())), labels[indices])
        loss.item()
        return steps * work.batch

    def label_pass() -> int:
        model.eval()
        with torch.inference_mode(), autocast:
            for few in pixels.split(work.batch):  # four times as many take twice as long here
                model[:-1](torch_twin.standardised(few.float())).float().numpy()
        return len(images)

    return {"bare step": bare, "step with input pipeline": with_pipeline, "label pass": label_pass}


def rate(work: Callable[[], int]) -> float:
    start = time.perf_counter()
    images = work()
    return images / (time.perf_counter() - start)


def profile(work: Callable[[], int]) -> list[list[str]]:
    """Shares of the processors' time by kind of operation, from TensorFlow's own profiler."""
    import tensorflow as tf
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    with tempfile.TemporaryDirectory() as directory:
        tf.profiler.experimental.start(directory)
        work()
        tf.profiler.experimental.stop()
        (path,) = pathlib.Path(directory).rglob("*.xplane.pb")
        space = xplane_pb2.XSpace.FromString(path.read_bytes())
    total: collections.Counter[str] = collections.Counter()
    for plane in space.planes:
        for line in plane.lines:
            for event in line.events:
                name = plane.event_metadata[event.metadata_id].name
                # operations are called name:Type; what encloses them has no type
                if ":" in name and "::" not in name and ": " not in name and not name.startswith("$"):
                    total[name.rsplit(":", 1)[1]] += event.duration_ps
    whole = sum(total.values())
    return [[kind, f"{100 * spent / whole:.1f} %"] for kind, spent in total.most_common(12)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=["float32", "mixed_bfloat16"])
    parser.add_argument("--profile", action="store_true", help="of the bare step in float32, instead")
    options = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import tensorflow as tf

    from sela_tf.reporting.markdown import markdown

    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    rng = np.random.default_rng(0)
    rows: list[list[str]] = []
    for name, work in WORKLOADS.items():
        images = rng.integers(0, 256, (work.num_images, work.side, work.side, work.channels), dtype=np.uint8)
        if options.profile:
            bare = sela_tf_work(work, images, "float32")[0]["bare step"]
            bare()
            print(f"{name}, bare step\n\n{markdown(['operation', 'share of the time'], profile(bare))}\n")
            continue
        import torch

        torch.set_num_threads(options.threads)
        for precision in options.precisions:
            (ours, loop), theirs = sela_tf_work(work, images, precision), pytorch_work(work, images, precision)
            for what in (*ours, "the run's own loop"):
                if what in ours:
                    for warm in (ours[what], theirs[what]):
                        warm()
                    pairs = [(rate(ours[what]), rate(theirs[what])) for _ in range(options.rounds)]
                else:
                    pairs = loop(options.rounds, lambda theirs=theirs: rate(theirs["step with input pipeline"]))
                own, other = np.median(pairs, axis=0)
                ratios = [a / b for a, b in pairs]
                spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
                rows.append([name, precision, what, f"{own:.0f}", f"{other:.0f}", f"{np.median(ratios):.2f}", spread])
                print(rows[-1], flush=True)
    if rows:
        print(markdown(["network", "precision", "images/s of", "sela_tf", "PyTorch", "ratio", "rounds"], rows))


if __name__ == "__main__":
    main()
