"""What a user would pick instead: `python -m benchmarks.simclr --output=FILE.json`, SimCLR in PyTorch on Fashion-MNIST; or --supervised.

The twin of sela_tf's ResNet-8 with its views, batches, optimizer and probes. SimCLR (arXiv 2002.05709): two views of each image, a projection
(a hidden layer of 256, then 128 values), cross-entropy of the cosine similarities over a temperature. `--supervised` learns the
classes instead, from one view. FILE.json holds the figures and `training_seconds`, without starting, reading and probing.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import time
from typing import Any

import numpy as np


def train(options: argparse.Namespace, images: np.ndarray, classes: np.ndarray) -> tuple[Any, list[dict[str, float]]]:
    """The network, and of each epoch the mean loss and the seconds until its end."""
    import torch
    from torch import nn
    from torch.nn import functional

    from benchmarks import torch_twin

    torch.manual_seed(options.seed)
    torch.set_num_threads(options.threads)
    features, width = torch_twin.backbone("resnet8", images.shape[-1])
    outputs = int(classes.max()) + 1 if options.supervised else 128
    top = (
        nn.Linear(width, outputs)
        if options.supervised
        else nn.Sequential(*torch_twin.hidden_layer(width, 256), nn.Linear(256, outputs))
    )
    model = nn.Sequential(features, top).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), options.learning_rate, momentum=0.9, weight_decay=1e-5)
    steps = len(images) // options.batch_size
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / (options.epochs * steps)))
    )
    pixels, targets = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(classes.astype(np.int64))
    mean, deviation = float(images.mean()), float(images.std())
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=options.precision == "bfloat16")
    pairs = torch.arange(2 * options.batch_size).roll(options.batch_size)

    def output(views: Any) -> Any:
        return model(torch_twin.standardised(views, mean, deviation))

    def loss_of(indices: Any) -> Any:
        chosen = pixels[indices].float()
        first = torch_twin.views(chosen, options.jitter)
        if options.supervised:
            return functional.cross_entropy(output(first), targets[indices])
        both = torch.cat([first, torch_twin.views(chosen, options.jitter)])
        projected = functional.normalize(output(both).float(), dim=1)
        similarity = (projected @ projected.T / options.temperature).fill_diagonal_(-math.inf)
        return functional.cross_entropy(similarity, pairs)

    course, spent = [], 0.0
    model.train()
    for epoch in range(options.epochs):
        start, total = time.perf_counter(), 0.0
        for indices in torch.randperm(len(images))[: steps * options.batch_size].split(options.batch_size):
            optimizer.zero_grad(set_to_none=True)
            with autocast:
                loss = loss_of(indices)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        spent += time.perf_counter() - start
        course.append({"epoch": epoch + 1, "loss": total / steps, "training_seconds": spent})
        print(f"epoch {epoch + 1}/{options.epochs}: loss {total / steps:.4f}, {spent:.0f} s", flush=True)
    model.eval()

    def embed(images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
        with torch.inference_mode():
            return torch.cat([features(torch_twin.standardised(few, mean, deviation)) for few in pixels.split(500)]).numpy()

    return embed, course


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--dataset", default="idx:/usr/share/datasets/fashion-mnist")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--learning_rate", type=float, default=0.1)
    parser.add_argument("--temperature", type=float, default=0.2)
    parser.add_argument("--jitter", type=float, default=0.4, help="of brightness and contrast, as sela_tf's flags of these names")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--supervised", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    from sela_tf.data.sources import load_source
    from sela_tf.evaluation.kmeans import kmeans_clusters
    from sela_tf.evaluation.knn import knn_accuracy
    from sela_tf.evaluation.linear_probe import linear_probe_accuracy
    from sela_tf.evaluation.metrics import evaluate_labels

    splits = load_source(options.dataset)
    train_set, held_out = splits.train, splits.eval
    if held_out is None or train_set.images is None or held_out.images is None:
        parser.error(f"--dataset={options.dataset} has no test images in memory")
    embed, course = train(options, train_set.images, np.asarray(train_set.classes))
    bank, features = embed(train_set.images), embed(held_out.images)
    train_classes, classes = np.asarray(train_set.classes), np.asarray(held_out.classes)
    probes = {
        "knn": {str(k): knn_accuracy(bank, train_classes, features, classes, k=k) for k in (10, 50, 200)},
        "linear_probe": {"embedding": linear_probe_accuracy(bank, train_classes, features, classes)},
        "kmeans": {"128": evaluate_labels(kmeans_clusters(features, 128)[np.newaxis], classes)},
    }
    row = {
        "probes": {"trained": probes},
        "course": course,
        "settings": {name: value for name, value in vars(options).items() if name != "output"},
    }
    options.output.write_text(json.dumps(row, indent=1) + "\n")
    figures = probes["knn"]["10"], probes["linear_probe"]["embedding"], probes["kmeans"]["128"]["nmi"][0]
    print("kNN {:.3f}, linear {:.3f}, NMI of k-means {:.3f}".format(*figures))


if __name__ == "__main__":
    main()
