"""Settings of data that several commands have: each default and help once."""

from __future__ import annotations

from typing import Any

from sela_tf.settings.fields import GIB, INNER_SHARE, POSITIVE, option


def eval_dataset_option() -> Any:
    """Returns the field `eval_dataset`."""
    return option("", "Images to evaluate on; by default the data set's own test split, or a share of it.")


def eval_fraction_option(note: str = "") -> Any:
    """Returns the field `eval_fraction`; its help ends with `note`."""
    words = f"Share of the images held out for evaluation where there is no test split{note}."
    return option(0.1, words, bound=INNER_SHARE)


def data_dir_option() -> Any:
    """Returns the field `data_dir`."""
    return option("", "Directory in which TFDS keeps its data sets; by default ~/tensorflow_datasets.", may_change=True)


def download_option() -> Any:
    """Returns the field `download`."""
    return option(False, "Let TFDS download what is missing. Nothing is downloaded without it.", may_change=True)


def cache_dir_option(default: str) -> Any:
    """Returns the field `cache_dir`; `default` names what an empty value stands for."""
    return option(
        "",
        "Directory of the cache that lists the checked files of a folder, so that they are decoded only once; "
        f"by default {default}.",
        may_change=True,
    )


def background_option() -> Any:
    """Returns the field `background`."""
    return option(
        "white",
        "Colour that transparent parts of images are laid on: white, black, or mean, that of the training images. old is for runs that are "
        "older than this setting: they drop transparency and orientation.",
        choices=("white", "black", "mean", "old"),
    )


def skip_bad_images_option(help: str = "Leave out damaged images of a folder instead of refusing it.") -> Any:
    """Returns the field `skip_bad_images`."""
    return option(False, help)


def memory_limit_option(help: str) -> Any:
    """Returns the field `memory_limit`, in GiB."""
    return option(4.0, help, bound=POSITIVE, may_change=True)


def label_memory_option(help: str) -> Any:
    """Returns the field `label_memory`, in GiB."""
    return option(4.0, help, bound=GIB, may_change=True)
