"""The settings of a run. Many are chosen from the images where they are not given; the paper's numbers stand in its recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

from sela_tf.settings.contradictions import check_contradictions
from sela_tf.settings.data import (
    background_option,
    cache_dir_option,
    check_class_level,
    class_level_option,
    classes_option,
    data_dir_option,
    download_option,
    eval_dataset_option,
    eval_fraction_option,
    label_memory_option,
    max_rejected_option,
    memory_limit_option,
)
from sela_tf.settings.fields import (
    CHOSEN,
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    SHARE_BELOW_1,
    Bound,
    ConfigError,
    check_settings,
    option,
)
from sela_tf.settings.paths import absolute_cache, absolute_path, absolute_source


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelaConfig:
    """The settings of a run; one that is None is chosen from the images. Sources: P the paper (arXiv 1911.05371), R its reference code."""

    SECTIONS: ClassVar[Mapping[str, str]] = {
        "dataset": "Images",
        "backbone": "Network",
        "crop_scale": "Training views",
        "epochs": "Learning",
        "num_heads": "Self-labelling: heads, clusters and labels",
        "rotation": "Rotation (P: SeLa+Rot)",
        "seed": "Machine",
        "log_every_steps": "What is shown and kept",
    }
    """Headings of --help, by the name of the setting that each stands above."""

    # images
    dataset: str = option(
        "",
        "Training images: folder:DIR or just the path of the folder, npz:FILE, idx:DIR, digits, records:DIR (as components.data_ingestion "
        "writes them), synthetic:N (N images made on the fly), or a TFDS name such as cifar10. Or features:FILE, an npy or npz file of "
        "vectors [N, D] in place of images.",
    )
    eval_dataset: str = eval_dataset_option()
    eval_fraction: float = eval_fraction_option(CHOSEN)
    data_dir: str = data_dir_option()
    download: bool = download_option()
    cache_dir: str = cache_dir_option("$XDG_CACHE_HOME/sela_tf or ~/.cache/sela_tf")
    classes: str = classes_option("none ignores class labels, which serve evaluation only.")
    imbalance: str = option(
        "none",
        "Remove training images to make classes unequal (P, on CIFAR-10). light: half of the last class. heavy: class i of C keeps "
        "(C - i + 1) / C of its images.",
        choices=("none", "light", "heavy"),
    )
    max_rejected: float = max_rejected_option()
    class_level: str = class_level_option()
    background: str = background_option()
    cache_images: bool = option(
        True,
        "Decode image files once: keep their pixels in memory, where memory_limit allows it, and in cache_dir. Views are the same without.",
        may_change=True,
    )
    memory_limit: float = memory_limit_option("GiB that decoded images may take; TensorFlow keeps a second copy.")
    image_size: int = option(
        CHOSEN, "Side of the square that the network sees; 0 for the images' own size, where they have one.", at_least=0
    )
    # network
    backbone: str = option(
        CHOSEN,
        "Network: resnet8, resnet20, resnet56 for small images, resnet18, resnet50, preact_resnet18, preact_resnet50, alexnet; or "
        "applications:NAME for one of keras.applications. identity, mlp for features.",
    )
    backbone_weights: str = option(
        "",
        "Weights that the backbone starts from: model.weights.h5 in the directory of a run with this backbone; a Keras model with its layers, "
        "NAME.keras; a file of weights of keras.applications; or imagenet for those that Keras publishes. By default random weights.",
    )
    backbone_learning_rate: float = option(
        0.0, "Learning rate of a backbone that starts from `backbone_weights`; 0 for that of the rest.", bound=NOT_NEGATIVE
    )
    frozen_epochs: int = option(
        0, "First epochs, in which the weights of a backbone that starts from `backbone_weights` stay as they are.", at_least=0
    )
    width: int = option(CHOSEN, "Channels of the backbone's first stage; 0 for as many as published.", at_least=0)
    hidden_units: int = option(CHOSEN, "Width of a hidden layer between the embedding and the heads; 0 for none.", at_least=0)
    sync_batch_norm: bool = option(False, "Batch statistics over all devices.")
    # views (R: its ImageNet augmentation)
    crop_scale: float = option(
        CHOSEN,
        "Smallest share of the area that a random resized crop keeps (R: 0.08); 1 for the clean view's box.",
        bound=POSITIVE_SHARE,
    )
    flip_probability: float = option(CHOSEN, "Probability of a horizontal flip.", bound=SHARE)
    brightness: float = option(0.4, "Strength of the jitter.", bound=SHARE)
    contrast: float = option(0.4, "Strength of the jitter.", bound=SHARE)
    saturation: float = option(CHOSEN, "Strength of the jitter; colour images only.", bound=SHARE)
    hue: float = option(CHOSEN, "Strength of the jitter, at most 0.5; colour images only.", bound=Bound(0, 0.5))
    grayscale_probability: float = option(CHOSEN, "Probability of a gray view; colour images only.", bound=SHARE)
    blur_probability: float = option(0.0, "Probability of a Gaussian blur.", bound=SHARE)
    feature_noise: float = option(
        CHOSEN, "Gaussian noise added to vectors, in standard deviations of each value.", bound=NOT_NEGATIVE
    )
    feature_dropout: float = option(CHOSEN, "Share of a vector's values that a view leaves out.", bound=SHARE_BELOW_1)
    # representation learning (P section 4.1)
    epochs: int = option(CHOSEN, "Passes over the training images (P: 400).", at_least=1)
    batch_size: int = option(CHOSEN, "Images of an optimizer step, over all devices.", at_least=2)
    optimizer: str = option(
        "sgd",
        "Optimizer: sgd (R), sgdw for SGD with decoupled weight decay, lamb (arXiv 1904.00962). The latter two are Keras' own, lamb from "
        "Keras 3.5 on; on TensorFlow 2.15 they are those of tensorflow-addons.",
        choices=("sgd", "sgdw", "lamb"),
    )
    learning_rate: float = option(CHOSEN, "Learning rate, before any drop (P: 0.05).", bound=POSITIVE)
    momentum: float = option(
        0.9, "Momentum of sgd and sgdw, without Nesterov's correction; lamb has moments of its own.", bound=SHARE_BELOW_1
    )
    weight_decay: float = option(
        CHOSEN,
        "Weight decay of all variables. sgd: coupled, times the weight, added to the gradient. sgdw, lamb: decoupled, times the learning "
        "rate and the weight, taken off the weight.",
        bound=NOT_NEGATIVE,
    )
    lr_schedule: str = option("cosine", "How the learning rate falls.", choices=("step", "cosine"))
    lr_drops: tuple[float, ...] = option(
        (0.375, 0.75, 0.875), "Shares of the epochs after which step divides by 10 (P: 150, 300, 350 of 400).", example="0.375,0.75"
    )
    # self-labelling (P section 3)
    num_heads: int = option(CHOSEN, "Heads T, each with labels of its own (P: 1 or 10).", at_least=1)
    num_clusters: int = option(
        CHOSEN,
        "Clusters K of each head (P: 3000 on ImageNet, 128 on CIFAR). Take more than there are kinds of things, because a kind may fill "
        "several clusters and a cluster should hold one kind; but leave some 30 images or more to each. Look at report.html, and halve "
        "or double it.",
        at_least=2,
    )
    lam: float = option(25.0, "Inverse strength of the entropic regularisation (P: 25 on ImageNet, 10 on CIFAR).", bound=POSITIVE)
    num_relabellings: int = option(CHOSEN, "Times that labels are recomputed (P: 80 is best).", at_least=0)
    relabel_spacing: str = option(
        "quadratic", "Spacing of the relabellings over the training (R: linear on CIFAR).", choices=("quadratic", "linear")
    )
    relabel_heads: str = option(
        "all", "Heads of a relabelling: all, or one after another in_turn (R, on CIFAR).", choices=("all", "in_turn")
    )
    label_view: str = option(
        "clean", "Images as the label pass sees them: clean, or augmented with batch statistics (R).", choices=("clean", "training")
    )
    transport_tolerance: float = option(
        1e-3, "L1 error of the clusters' shares at which the transport stops.", bound=Bound(1e-6, 2)
    )
    transport_max_iterations: int = option(
        10_000, "Passes over the log-probabilities after which a transport stops without having converged.", at_least=1
    )
    label_memory: float = label_memory_option(
        "GiB that the log-probabilities of a head, and what its transport stores with them, may take: held as float32 if they fit, "
        "else as float16, else computed from the features at every reading. Features that alone take more lie in a file of the workdir. On "
        "graphics cards it is the memory of each."
    )
    exact_balance: bool = option(
        True, "Round the transport to clusters of exactly the right sizes; otherwise labels are its plain argmax (R)."
    )
    marginals: str = option(
        "uniform", "Shares of the clusters: uniform, zipf, gaussian, or the latter two with a parameter, as zipf:0.5."
    )
    cluster_sizes: str = option(
        "",
        "Smallest and largest number of training images of a cluster, as 20:500, 20: or :500; without it all clusters are equally large. "
        "Labels are the best within these bounds.",
    )
    known_labels: str = option(
        "",
        "CSV file of images whose cluster is known and kept: name,cluster, or index,cluster with the source's rows; or names of clusters and "
        "images, head,cluster,source,name: images keep a cluster of their name.",
    )
    labels_from: str = option(
        "", "labels.npz of another run, whose labels of the same images are trained on and kept (P: label transfer)."
    )
    continue_from: str = option(
        "",
        "Directory of a finished run that is taken up with images added to its data set, or removed: the new run starts from its weights, "
        "labels and clusters, and has its settings where they are not given.",
    )
    rotation: bool = option(CHOSEN, "Also learn to tell by which of four right angles an image was turned (P: SeLa+Rot).")
    rotation_share: float = option(
        CHOSEN,
        "Share of the images of a step that are also shown turned in all three ways by `rotation` (P: all; four times the cost).",
        bound=POSITIVE_SHARE,
    )
    # machine
    seed: int = option(0, "Seed of weights, initial labels, permutations and views.", at_least=0)
    mixed_precision: str = option(
        "none",
        "Number format inside; float16 skips steps that overflow, and relabelling does not count them.",
        choices=("none", "bfloat16", "float16"),
    )
    xla: bool = option(False, "Compile the training step with XLA; one device only.")
    strategy: str = option(
        "auto",
        "Devices: one; mirrored for all of this machine; multiworker for those of all processes that TF_CONFIG names; auto for multiworker "
        "where it names several, and for mirrored elsewhere.",
        choices=("auto", "one", "mirrored", "multiworker"),
        may_change=True,
    )
    logical_cpus: int = option(
        0, "Number of logical devices that the CPU is split into, to try several devices without GPUs; 0 for one.", at_least=0
    )
    accept_changed_data: bool = option(
        False,
        "Go on once with images or files that changed since the run began, where the images have the same names; results.json says so.",
        may_change=True,
    )
    # shown and kept
    log_every_steps: int = option(
        50, "Steps between two rows of the loss in metrics.jsonl and TensorBoard.", may_change=True, at_least=1
    )
    monitor_examples: int = option(
        10_000, "Training images that the kNN of the monitors looks among; 0 for no kNN.", may_change=True, at_least=0
    )
    monitor_epochs: int = option(
        CHOSEN, "Epochs between two looks of the monitors, and between two checkpoints.", may_change=True, at_least=1, before=1
    )
    evaluate: str = option(
        "auto",
        "Images that the figures are taken on: full for all; sampled for at most 50,000 training and 10,000 held-out images, with 100 "
        "iterations of the linear probe instead of 500; auto for sampled above 100,000 training images, else full; none for no figure at "
        "all, neither in training nor after it.",
        choices=("auto", "full", "sampled", "none"),
        may_change=True,
    )
    report: bool = option(True, "Draw report.html, report.png and galleries/ at the end.", may_change=True)
    checkpoint_minutes: float = option(
        10.0,
        "Most minutes between two checkpoints, which are also written every `monitor_epochs` epochs; 0 for no limit.",
        bound=NOT_NEGATIVE,
        may_change=True,
    )
    keep_checkpoints: int = option(2, "Newest checkpoints that are kept.", may_change=True, at_least=1)

    def __post_init__(self) -> None:
        try:
            object.__setattr__(self, "lr_drops", tuple(float(share) for share in self.lr_drops))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"`lr_drops` must be increasing shares of the epochs. Received: {self.lr_drops!r}") from error
        if not self.dataset:
            raise ConfigError(
                "`dataset` is missing: digits, idx:DIR, folder:DIR, npz:FILE, records:DIR, features:FILE, synthetic:N, or a TFDS name"
            )
        check_settings(self)
        check_class_level(self.class_level)
        check_contradictions(self)

    def absolute(self) -> SelaConfig:
        """Returns the settings with absolute paths, so that they mean the same data in any directory."""
        return dataclasses.replace(
            self,
            dataset=absolute_source(self.dataset, tell=print),
            eval_dataset=absolute_source(self.eval_dataset, tell=print),
            data_dir=self.data_dir and absolute_path(self.data_dir),
            cache_dir=absolute_cache(self.cache_dir),
            known_labels=self.known_labels and absolute_path(self.known_labels),
            labels_from=self.labels_from and absolute_path(self.labels_from),
            continue_from=self.continue_from and absolute_path(self.continue_from),
            backbone_weights=self.backbone_weights
            if self.backbone_weights in ("", "imagenet")
            else absolute_path(self.backbone_weights),
        )
