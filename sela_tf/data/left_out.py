"""Images that are left out: each with its reason, in a file and in a line."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from sela_tf.data.csv_rows import csv_text
from sela_tf.data.errors import NAMES_SHOWN, SourceError
from sela_tf.files.atomic import write_whole


class ImageNote(NamedTuple):
    """An image that is left out or converted, and the reason."""

    name: str
    """The name of the image in its source."""
    reason: str
    """The reason, for the user."""


def shown_name(name: str) -> str:
    """Returns a name with its line breaks and other control characters escaped, for a line."""
    return repr(name)[1:-1]


def in_words(images: Sequence[ImageNote]) -> str:
    """Returns the first names with their reasons, for a message; a reason that all share is said once."""
    first, more = images[:NAMES_SHOWN], len(images) - NAMES_SHOWN
    if len({image.reason for image in images}) == 1:
        names = ", ".join(shown_name(image.name) for image in first)
        return f"{names}{f' and {more} more' if more > 0 else ''} ({images[0].reason})"
    shown = "; ".join(f"{shown_name(image.name)} ({image.reason})" for image in first)
    return shown + (f"; and {more} more" if more > 0 else "")


def check_rejected(damaged: Sequence[ImageNote], num_images: int, max_rejected: float, *, source: str) -> None:
    """Checks that the share of damaged images may be left out.

    Args:
        damaged: Images that cannot be read.
        num_images: The number of all images, damaged ones included.
        max_rejected: The largest share that may be left out, from 0 to 1.
        source: The name of the data set, for messages.

    Raises:
        SourceError: More images are damaged. The message has names, counts, and the share that would do.
    """
    if damaged and len(damaged) / num_images > max_rejected:
        enough = (len(damaged) * 1000 // num_images + 1) / 1000
        raise SourceError(
            f"{source}: {len(damaged)} of {num_images} images cannot be read, `max_rejected={max_rejected:g}`: {in_words(damaged)}. Repair or "
            f"remove them" + (f", or leave them out with `max_rejected={enough:g}`" if len(damaged) < num_images else "")
        )


def write_left_out(path: pathlib.Path, images: Sequence[ImageNote]) -> bool:
    """Writes a CSV file of all images that are left out, with the columns name and reason; without any, it is removed.

    Returns:
        True if there are any.
    """
    if images:
        write_whole(path, csv_text(ImageNote._fields, images))
    else:
        path.unlink(missing_ok=True)
    return bool(images)


def beside(output: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of the file of left-out images that belongs to the file `output`: labels.csv has labels.csv.left_out.csv."""
    return pathlib.Path(f"{os.fspath(output)}.left_out.csv")
