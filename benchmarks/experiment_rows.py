"""What is trained for docs/results.md: each row a training and its probes, over seeds; and which rows make up which table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

SEEDS = (0, 1, 2)
EMBEDDING = ("--stages=embedding", "--kmeans=128")
BOTH = ("--stages=embedding", "--untrained")


class Row(NamedTuple):
    """A config and what departs from it."""

    config: str
    changes: Sequence[str] = ()
    probe: Sequence[str] = EMBEDDING
    labels_of: str = ""
    """The row whose run, of the same seed, gives the labels."""
    program: Sequence[str] = ("sela_tf.train",)
    """Module and arguments before the flags."""
    held_out: bool = False
    """To choose by: trained on the first 50,000 training images and judged by the other 10,000, no test image seen."""


class Peer(NamedTuple):
    """What trains and probes in PyTorch: benchmarks/simclr.py with these arguments."""

    arguments: Sequence[str]


class Table(NamedTuple):
    """Of rows, and the columns that it shows: names of `experiment_tables.figures`, or the beginnings of several."""

    rows: Sequence[str]
    columns: Sequence[str] = ("kNN, k = 10", "linear, embedding", "NMI", "NMI, k-means", "training, s")
    untrained: bool = False
    base: Row | None = None
    """Rows are named by how they depart from it, instead of by their names."""


_SHORT = ("--epochs=4", "--num_relabellings=8")
_FIXED = ("--num_relabellings=0",)
_HALF = ("--mixed_precision=bfloat16",)
_HALF_PEER = ("--precision=bfloat16",)


def _short(*changes: str, config: str = "fashion_mnist", probe: Sequence[str] = BOTH) -> Row:
    return Row(config, (*_SHORT, *changes), probe)


_FIRST = Row("fashion_mnist_best", ("--epochs=5", "--batch_size=128", "--learning_rate=0.1", *_HALF), held_out=True)
"""The first recipe that was good; in half precision for the time. Others were tried as they depart from it."""


def _tried(*changes: str, base: Row = _FIRST) -> Row:
    return base._replace(changes=(*base.changes, *changes))


_SMALLER_BATCHES = _tried("--batch_size=64", "--learning_rate=0.05")
"""The recipe until a higher rate was tried."""


def _relabelled(times: int) -> Row:
    return Row("fashion_mnist", ("--epochs=4", f"--num_relabellings={times}"))


ROWS_OF: dict[str, Row | Peer] = {
    # networks and recipes
    "resnet8": _short(probe=(*EMBEDDING, "--untrained")),
    "resnet8_10_heads": _short(config="fashion_mnist_128x10", probe=(*EMBEDDING, "--untrained")),
    "resnet8_bfloat16": _short(*_HALF),
    "resnet18": _short("--backbone=resnet18", "--width=32"),
    "resnet20": _short("--backbone=resnet20"),
    "preact_resnet18": _short("--backbone=preact_resnet18", "--width=32"),
    "mobilenet": _short("--backbone=applications:MobileNet", "--image_size=32"),
    "alexnet": _short(
        "--backbone=alexnet", "--width=24", "--image_size=64", "--hidden_units=0", "--learning_rate=0.05",
        probe=("--stages=conv1,conv2,conv3,conv4,conv5,embedding", "--values=384", "--untrained"),
    ),
    "resnet8_rotation": Row("fashion_mnist", ("--epochs=2", *_FIXED, "--rotation"), BOTH, labels_of="resnet8"),
    "resnet8_same_labels": Row("fashion_mnist", ("--epochs=2", *_FIXED), BOTH, labels_of="resnet8"),
    "resnet8_to_resnet20": Row("fashion_mnist", ("--epochs=3", *_FIXED, "--backbone=resnet20"), BOTH, labels_of="resnet8"),
    "resnet8_to_resnet18": Row(
        "fashion_mnist", ("--epochs=4", *_FIXED, "--backbone=resnet18", "--width=32"), BOTH, labels_of="resnet8"
    ),
    # ablations
    "relabellings_0": _relabelled(0),
    "relabellings_2": _relabelled(2),
    "relabellings_16": _relabelled(16),
    "relabellings_80": _relabelled(80),
    "clusters_32": _short("--num_clusters=32", probe=EMBEDDING),
    "clusters_512": _short("--num_clusters=512", probe=EMBEDDING),
    "heads_3": _short("--num_heads=3", probe=EMBEDDING),
    **{f"argmax_lam_{lam}": _short("--noexact_balance", f"--lam={lam}", probe=EMBEDDING) for lam in (5, 10, 25, 50, 100)},
    "kmeans": Row("fashion_mnist", _SHORT, program=("benchmarks.other_labels", "kmeans")),
    "argmax": Row("fashion_mnist", _SHORT, program=("benchmarks.other_labels", "argmax")),
    # in search of a better recipe
    "tried_fashion_mnist": Row("fashion_mnist", ("--epochs=5", *_HALF), held_out=True),
    "tried_first": _FIRST,
    "tried_no_turns": _tried("--norotation", "--rotation_share=1"),
    "tried_turns_eighth": _tried("--rotation_share=0.125"),
    "tried_turns_half": _tried("--rotation_share=0.5"),
    "tried_jitter_none": _tried("--brightness=0", "--contrast=0"),
    "tried_jitter_40": _tried("--brightness=0.4", "--contrast=0.4"),
    "tried_jitter_60": _tried("--brightness=0.6", "--contrast=0.6"),
    "tried_jitter_100": _tried("--brightness=1", "--contrast=1"),
    "tried_blur": _tried("--blur_probability=0.5"),
    "tried_crop_15": _tried("--crop_scale=0.15"),
    "tried_crop_40": _tried("--crop_scale=0.4"),
    "tried_hidden_64": _tried("--hidden_units=64"),
    "tried_hidden_256": _tried("--hidden_units=256"),
    "tried_batch_64": _SMALLER_BATCHES,
    "tried_batch_64_rate_10": _tried("--batch_size=64"),
    "tried_batch_64_rate_20": _tried("--batch_size=64", "--learning_rate=0.2"),
    "tried_batch_64_rate_40": _tried("--batch_size=64", "--learning_rate=0.4"),
    "tried_batch_64_rate_10_decay_1e-3": _tried("--batch_size=64", "--weight_decay=1e-3"),
    "tried_batch_64_decay_1e-3": _tried("--weight_decay=1e-3", base=_SMALLER_BATCHES),
    "tried_batch_64_turns_fifth": _tried("--rotation_share=0.2", base=_SMALLER_BATCHES),
    "tried_batch_64_turns_eighth_6_epochs": _tried("--rotation_share=0.125", "--epochs=6", base=_SMALLER_BATCHES),
    "tried_batch_64_turns_16th_7_epochs": _tried("--rotation_share=0.0625", "--epochs=7", base=_SMALLER_BATCHES),
    "tried_batch_32": _tried("--batch_size=32", "--learning_rate=0.025"),
    "tried_batch_256": _tried("--batch_size=256", "--learning_rate=0.2"),
    "tried_decay_1e-3": _tried("--weight_decay=1e-3"),
    "tried_clusters_512": _tried("--num_clusters=512"),
    "tried_heads_3": _tried("--num_heads=3"),
    "tried_relabelled_4": _tried("--num_relabellings=4"),
    "tried_relabelled_16": _tried("--num_relabellings=16"),
    "tried_relabelled_evenly": _tried("--relabel_spacing=linear"),
    "tried_training_view": _tried("--label_view=training"),
    "tried_lam_10": _tried("--lam=10"),
    "tried_not_balanced": _tried("--noexact_balance"),
    "tried_10_epochs": _tried("--epochs=10"),
    "tried_no_turns_9_epochs": _tried("--norotation", "--rotation_share=1", "--epochs=9"),
    "tried_turns_eighth_6_epochs": _tried("--rotation_share=0.125", "--epochs=6"),
    "tried_relabelled_4_6_epochs": _tried("--num_relabellings=4", "--epochs=6"),
    "tried_rate_20": _tried("--learning_rate=0.2"),
    "tried_drops": _tried("--lr_schedule=step"),
    **{
        f"tried_{way}": _SMALLER_BATCHES._replace(program=("benchmarks.other_views", way)) for way in ("averaged", "bank", "pairs")
    },
    # against what a user would pick instead
    "fashion_mnist": Row("fashion_mnist"),
    "best": Row("fashion_mnist_best", _HALF),
    "best_x2": Row("fashion_mnist_best", ("--epochs=10", *_HALF)),
    "best_x4": Row("fashion_mnist_best", ("--epochs=20", *_HALF)),
    "simclr": Peer(("--epochs=5", *_HALF_PEER)),
    "simclr_jitter_80": Peer(("--epochs=5", "--jitter=0.8", *_HALF_PEER)),
    "simclr_jitter_80_rate_20": Peer(("--epochs=5", "--jitter=0.8", "--learning_rate=0.2", *_HALF_PEER)),
    "simclr_jitter_80_rate_40": Peer(("--epochs=5", "--jitter=0.8", "--learning_rate=0.4", *_HALF_PEER)),
    "simclr_jitter_80_x4": Peer(("--epochs=20", "--jitter=0.8", *_HALF_PEER)),
    "simclr_x2": Peer(("--epochs=10", *_HALF_PEER)),
    "simclr_x4": Peer(("--epochs=20", *_HALF_PEER)),
    "supervised": Peer(("--epochs=5", "--supervised", *_HALF_PEER)),
    "best_float32": Row("fashion_mnist_best"),
    "simclr_float32": Peer(("--epochs=5",)),
}  # fmt: skip

_NETWORK = ("kNN", "linear", "NMI", "AMI", "ARI", "training, s")
TABLES: dict[str, Table] = {
    "networks": Table(
        ("resnet8", "resnet8_10_heads", "resnet20", "resnet18", "preact_resnet18", "mobilenet"), _NETWORK, untrained=True
    ),
    "precision": Table(("resnet8", "resnet8_bfloat16"), _NETWORK, untrained=True),
    "alexnet": Table(("alexnet",), _NETWORK, untrained=True),
    "labels": Table(("resnet8", "resnet8_same_labels", "resnet8_rotation"), _NETWORK, untrained=True),
    "relabellings": Table(("relabellings_0", "relabellings_2", "resnet8", "relabellings_16", "relabellings_80")),
    "clusters": Table(("clusters_32", "resnet8", "clusters_512")),
    "heads": Table(("resnet8", "heads_3", "resnet8_10_heads")),
    "lam": Table(
        ("argmax_lam_5", "argmax_lam_10", "argmax_lam_25", "argmax_lam_50", "argmax_lam_100", "resnet8"),
        ("kNN, k = 10", "linear, embedding", "NMI", "NMI, k-means", "iterations", "smallest cluster", "largest cluster"),
    ),
    "equipartition": Table(
        ("resnet8", "kmeans", "argmax"),
        (
            "kNN, k = 10", "linear, embedding", "NMI, k-means", "NMI, training labels", "clusters used", "information, nats",
            "changed at the end, %", "training, s",
        ),
    ),
    "tried": Table(
        tuple(name for name in ROWS_OF if name.startswith("tried_")),
        base=_FIRST,
    ),
    "recipe": Table(
        (
            "fashion_mnist", "best", "best_x2", "best_x4", "simclr", "simclr_x2", "simclr_x4", "simclr_jitter_80",
            "simclr_jitter_80_rate_20", "simclr_jitter_80_rate_40", "simclr_jitter_80_x4", "supervised",
        )
    ),
    "recipe_float32": Table(("best_float32", "simclr_float32")),
}  # fmt: skip
TRANSFER = ("resnet8", "resnet20", "resnet8_to_resnet20", "resnet18", "resnet8_to_resnet18")
"""Rows of the table `transfer`, of which the first is where labels come from."""
