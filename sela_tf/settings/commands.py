"""The settings of the commands that work with a finished run: label, probe, report, convert and export."""

from __future__ import annotations

import dataclasses
import os

from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.settings.data import (
    cache_dir_option,
    check_class_level,
    class_level_option,
    classes_option,
    data_dir_option,
    download_option,
    label_memory_option,
    max_rejected_option,
    memory_limit_option,
    names_option,
)
from sela_tf.settings.fields import (
    NOT_NEGATIVE,
    POSITIVE,
    POSITIVE_SHARE,
    SHARE,
    SHARE_BELOW_1,
    ConfigError,
    check_settings,
    option,
)
from sela_tf.settings.paths import absolute_path

MOST_NEIGHBOURS = 1000
"""Nearest images of each one in a file of labels, at most."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelConfig:
    """The settings of `python -m sela_tf.label`."""

    workdir: str = option("", "A run whose training is finished.")
    dataset: str = option("", "Images to label, as in training; by default those of the run, held-out ones included.")
    output: str = option("", "File to write: .parquet, .csv or .npz.")
    balanced: bool = option(
        False, "Solve the transport on these images, so that clusters are exactly balanced among them; features are kept on disk."
    )
    potentials: bool = option(
        True, "Add the potentials of the run's last transport, which corrects clusters for their frequency; otherwise plain argmax."
    )
    embeddings: bool = option(True, "Also write the embeddings.")
    names: str = names_option()
    neighbours: int = option(
        10, "Nearest other images by the embedding, of each of at most 50,000 images; only in .parquet; 0 for none.", at_least=0
    )
    pictures: bool = option(True, "Also write small pictures, of at most 50,000 images; only in .parquet.")
    projector: str = option(
        "",
        "Directory to write for TensorBoard's projector: embeddings, names, clusters and pictures of at most 10,000 of the images.",
    )
    batch_size: int = option(EVALUATION_BATCH, "Images at a time.", at_least=1)
    classes: str = classes_option("none leaves class labels out of the file.")
    max_rejected: float = max_rejected_option("they are listed in a file beside `output`")
    class_level: str = class_level_option()
    data_dir: str = data_dir_option()
    download: bool = download_option()
    cache_dir: str = cache_dir_option("the run's")
    memory_limit: float = memory_limit_option("GiB that decoded images may take; folders are read as they are needed.")
    label_memory: float = label_memory_option("GiB that the log-probabilities of a head may take with `balanced`, as in training.")
    beam_runner: str = option(
        "", "Runner of Apache Beam whose workers run the network on parts of records, such as FnApiRunner; the file is the same."
    )
    beam_pipeline_args: tuple[str, ...] = option(
        (), "Further options of Apache Beam; by default those of FnApiRunner for a process on each processor."
    )

    def __post_init__(self) -> None:
        if not self.workdir:
            raise ConfigError("`workdir` is missing: the directory of a finished run")
        if self.beam_pipeline_args and not self.beam_runner:
            raise ConfigError(f"`beam_pipeline_args={','.join(self.beam_pipeline_args)}` needs a `beam_runner`")
        if os.path.splitext(self.output)[1] not in (".parquet", ".csv", ".npz"):
            raise ConfigError(f"`output` must be a file NAME.parquet, NAME.csv or NAME.npz. Received: `output={self.output}`")
        if self.neighbours > MOST_NEIGHBOURS:
            raise ConfigError(f"`neighbours` must be at most {MOST_NEIGHBOURS}. Received: `neighbours={self.neighbours}`")
        if self.balanced and not self.potentials:
            raise ConfigError("`balanced` makes potentials of its own: leave out `potentials=False`")
        check_settings(self)
        check_class_level(self.class_level)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeConfig:
    """The settings of `python -m sela_tf.probe`. Source: the reference's evaluation of AlexNet on ImageNet."""

    workdir: tuple[str, ...] = option(
        (),
        "Runs whose training is finished. If several are given, which differ only in the seed, their mean and interval are shown.",
    )
    stages: tuple[str, ...] = option(
        (),
        "Stages that are probed, such as conv3,conv4; by default all and the embedding, in components.pipeline the embedding only.",
    )
    protocol: str = option(
        "logistic",
        "logistic: scikit-learn's logistic regression on features kept in memory, for small data. sgd: all probes trained together by "
        "SGD in passes over augmented images, the paper's way.",
        choices=("logistic", "sgd"),
    )
    values: int = option(
        9600, "Number of values, approximately, to which the map of a stage is pooled if it has more (R: 9600).", at_least=1
    )
    knn: tuple[int, ...] = option((10, 50, 200), "Neighbours k of the kNN on the embedding.", example="10,50,200")
    kmeans: tuple[int, ...] = option(
        (), "Numbers of clusters of k-means on the held-out images' embedding, which are compared with the classes.", example="128"
    )
    untrained: bool = option(False, "Also probe the network before its first step.")
    other_run: str = option(
        "",
        "Directory of another finished run of the same images, such as one with another seed: the clusters of the held-out images by both "
        "are compared, which needs no classes.",
    )
    evaluate: str = option(
        "auto",
        "Images of kNN, clustering and protocol logistic: full for all; sampled for at most 50,000 training and 10,000 held-out images, "
        "with 100 iterations of the logistic regression instead of 500; auto for sampled above 100,000 training images, else full.",
        choices=("auto", "full", "sampled"),
    )
    dataset: str = option("", "Images with classes to fit the probes to; by default those of the run.")
    eval_dataset: str = option("", "Images with classes to score them on; by default those of the run, or `dataset`'s own.")
    max_rejected: float = max_rejected_option("they are listed in probes_left_out.csv")
    class_level: str = class_level_option()
    cache_dir: str = cache_dir_option("the run's")
    # of protocol sgd (R)
    epochs: int = option(36, "Epochs of sgd.", at_least=1)
    batch_size: int = option(192, "Batch size of sgd.", at_least=1)
    learning_rate: float = option(0.01, "Learning rate of sgd, before any drop.", bound=POSITIVE)
    drop_epochs: tuple[int, ...] = option(
        (10, 20, 30), "Epochs of sgd after which the learning rate is divided by 10.", example="10,20,30"
    )
    momentum: float = option(0.9, "Momentum of sgd.", bound=SHARE_BELOW_1)
    weight_decay: float = option(1e-5, "Weight decay of sgd, coupled.", bound=NOT_NEGATIVE)
    crop_scale: float = option(
        0.08, "Smallest share of the area that a crop of sgd keeps; images are also flipped.", bound=POSITIVE_SHARE
    )
    flip_probability: float = option(0.5, "Probability of a horizontal flip, in sgd.", bound=SHARE)
    ten_crop: bool = option(False, "After sgd, score the mean over the corners, the centre and their mirror images (R).")
    seed: int = option(0, "Seed of the views and of the probes' weights.", at_least=0)

    def __post_init__(self) -> None:
        if not self.workdir:
            raise ConfigError("`workdir` is missing: the directory of a finished run")
        check_settings(self)
        check_class_level(self.class_level)
        if not all(k >= 1 for k in self.knn):
            raise ConfigError(f"`knn` must be numbers of neighbours from 1. Received: {self.knn}")
        if not all(k >= 2 for k in self.kmeans):
            raise ConfigError(f"`kmeans` must be numbers of clusters from 2. Received: {self.kmeans}")
        if list(self.drop_epochs) != sorted(self.drop_epochs) or not all(epoch >= 1 for epoch in self.drop_epochs):
            raise ConfigError(f"`drop_epochs` must be increasing epochs from 1. Received: {self.drop_epochs}")
        if self.other_run:
            object.__setattr__(self, "other_run", absolute_path(self.other_run))
            if self.other_run in map(absolute_path, self.workdir):
                raise ConfigError(f"`other_run={self.other_run}` is the run itself: name another one")
        if self.ten_crop and self.protocol != "sgd":
            raise ConfigError("`ten_crop` needs `protocol=sgd`")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReportConfig:
    """The settings of `python -m sela_tf.report`."""

    workdir: str = option("", "A run whose training is finished.")
    names: str = option(
        "",
        "names.csv as report.html gives it: its names of clusters are kept in the run's labels.npz, in place of earlier ones, and are shown.",
    )
    images: str = option(
        "",
        "Pictures that stand for the vectors of a run: a source of images, such as folder:DIR, with as many images as vectors, in the order of "
        "their names; or a csv, parquet or txt file with a column of paths, in the order of the vectors.",
    )
    dataset: str = option("", "The images of the run, where they lie elsewhere now; by default those that it was given.")
    data_dir: str = data_dir_option()
    cache_dir: str = cache_dir_option("the run's")

    def __post_init__(self) -> None:
        if not self.workdir:
            raise ConfigError("`workdir` is missing: the directory of a finished run")
        check_settings(self)
        object.__setattr__(self, "workdir", absolute_path(self.workdir))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """The settings of `python -m sela_tf.convert`."""

    input: str = option("", "Folder of images of any format that Pillow reads.")
    output: str = option("", "Directory to write, made if missing; one of an earlier call is brought up to date.")

    def __post_init__(self) -> None:
        for name, what in (("input", "a folder of images"), ("output", "the directory to write")):
            value = getattr(self, name).removeprefix("folder:")
            if not value:
                raise ConfigError(f"`{name}` is missing: {what}")
            if "://" in value:
                raise ConfigError(f"`{name}={value}` must be a local directory: copy it to a disk")
            object.__setattr__(self, name, absolute_path(value))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """The settings of `python -m sela_tf.export`."""

    workdir: str = option("", "A run whose training is finished.")
    export_dir: str = option(
        "", "Directory of the served model, made if missing. The export is written into a numbered directory below it."
    )
    potentials: bool = option(
        True,
        "Add the potentials of the final weights: clusters are corrected for the prior, as the labels of training are. Otherwise they "
        "are the network's plain argmax.",
    )
    names: str = names_option()
    export_version: int = option(0, "Number of the export; 0 for the next one.", at_least=0)
    warm_up: bool = option(
        True,
        "Add requests that TensorFlow Serving runs before it reports that it is ready; needs the extra serving.",
    )
    check: bool = option(
        False,
        "Run the export in a process without sela_tf, compare its answers with the network's, and measure its speed. If they differ, "
        "nothing is exported.",
    )

    def __post_init__(self) -> None:
        if not self.workdir:
            raise ConfigError("`workdir` is missing: the directory of a finished run")
        if not self.export_dir:
            raise ConfigError("`export_dir` is missing: the directory that TensorFlow Serving is given")
        check_settings(self)
        object.__setattr__(self, "workdir", absolute_path(self.workdir))
        object.__setattr__(self, "export_dir", absolute_path(self.export_dir))
