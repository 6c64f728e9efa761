"""Settings of data that several commands have: each default and help once."""

from __future__ import annotations

from typing import Any

from sela_tf.settings.fields import GIB, INNER_SHARE, POSITIVE, SHARE, ConfigError, option


def eval_dataset_option() -> Any:
    """Returns the field `eval_dataset`."""
    return option("", "Images to evaluate on; by default the data set's own test split, or a share of it.")


def eval_fraction_option(default: Any, note: str = "") -> Any:
    """Returns the field `eval_fraction`; its help ends with `note`."""
    words = f"Share of the images held out for evaluation where there is no test split{note}."
    return option(default, words, bound=INNER_SHARE)


def data_dir_option() -> Any:
    """Returns the field `data_dir`."""
    return option("", "Directory in which TFDS keeps its data sets; by default ~/tensorflow_datasets.", may_change=True)


def download_option() -> Any:
    """Returns the field `download`."""
    return option(
        False, "Let TFDS download what is missing, and Keras its weights. Nothing is downloaded without it.", may_change=True
    )


def cache_dir_option(default: str) -> Any:
    """Returns the field `cache_dir`; `default` names what an empty value stands for."""
    return option(
        "",
        "Directory of the caches of a folder, its checked files and their pixels, so that they are decoded only once; "
        f"by default {default}.",
        may_change=True,
    )


def classes_option(help: str) -> Any:
    """Returns the field `classes`."""
    return option("auto", help, choices=("auto", "none"))


def max_rejected_option(note: str = "they are listed in left_out.csv") -> Any:
    """Returns the field `max_rejected`; its help says in `note` where images that are left out are listed."""
    words = (
        f"Largest share of the images that may be left out because they are damaged; {note}. With more, the data set is refused."
    )
    return option(0.0, words, bound=SHARE)


def class_level_option() -> Any:
    """Returns the field `class_level`."""
    return option(
        "auto",
        "Directories of a folder that are its classes. auto: the first level below the split (train, test, …) that has two or more; a "
        "number N: the N-th level below it; parent: those that hold the images; old: as in runs whose flags.cfg does not name this.",
        before="old",
    )


def check_class_level(value: str) -> None:
    """Checks the value of `class_level`.

    Raises:
        ConfigError: It is none of those that are known.
    """
    if value not in ("auto", "parent", "old") and not (value.isdecimal() and value.isascii() and 1 <= int(value) <= 100):
        raise ConfigError(f"`class_level` must be auto, parent, or a number from 1. Received: `class_level={value}`")


def background_option() -> Any:
    """Returns the field `background`."""
    return option(
        "white",
        "Colour that transparent parts of images are laid on: white, black, or mean, that of the training images. old is for runs that are "
        "older than this setting: they drop transparency and orientation.",
        choices=("white", "black", "mean", "old"),
        before="old",
    )


def memory_limit_option(help: str) -> Any:
    """Returns the field `memory_limit`, in GiB."""
    return option(4.0, help, bound=POSITIVE, may_change=True)


def label_memory_option(help: str) -> Any:
    """Returns the field `label_memory`, in GiB."""
    return option(4.0, help, bound=GIB, may_change=True)


def names_option() -> Any:
    """Returns the field `names`."""
    return option(
        "", "CSV file with names of clusters and images, head,cluster,source,name; by default the names that the run has."
    )
