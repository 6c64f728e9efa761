"""The conversion of image files that TensorFlow does not read to png, by Pillow (extra `formats`)."""

from __future__ import annotations

import functools
import importlib.util
import io
import pathlib
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tensorflow as tf

from sela_tf.data.decoding import check_image
from sela_tf.data.headers import MAX_PIXELS, BadImageError, UnreadableFormatError
from sela_tf.data.listing import FileInfo, inspect_file

if TYPE_CHECKING:
    from PIL import Image

_NOT_TRIED = ("EPS", "PDF", "WMF", "MPEG", "GRIB", "BUFR", "HDF5", "FITS")
"""Formats of Pillow that are no pixels, or that it hands to other programs."""
_LARGEST_16_BIT = 65535
_HEIF_SUFFIXES = (".heic", ".heif", ".hif")
"""Endings of names of files that need pillow-heif."""
INSTALL = "pip install 'sela-tf[formats]'"


def missing_packages(names: list[str]) -> str:
    """Returns a line that says which package the conversion of files with these names needs and lacks; "" if none."""
    if importlib.util.find_spec("PIL") is None:
        return f"converting images needs Pillow: {INSTALL}"
    heif = [name for name in names if name.lower().endswith(_HEIF_SUFFIXES)]
    if heif and importlib.util.find_spec("pillow_heif") is None:
        return f"{len(heif)} files, such as {heif[0]!r}, need pillow-heif: {INSTALL}"
    return ""


class Converted(NamedTuple):
    """The result of reading a file that may have to be converted."""

    file: FileInfo
    """The result for the file: after its conversion that for the png, under the name of the file."""
    png: bytes = b""
    """The png that it was converted to; empty if it is readable as it is, or cannot be read at all."""
    reason: str = ""
    """The reason for its conversion; "" if it was not converted."""


def inspect_or_convert(root: str, name: str) -> Converted:
    """Reads the file `name` below `root`, decodes it if it is an image, and converts it if TensorFlow does not read it and Pillow does."""
    file = inspect_file(root, name)
    if file.info is not None or (file.problem and not file.is_foreign):
        return Converted(file)
    with tf.io.gfile.GFile(file.path, "rb") as opened:
        data = opened.read()
    if not (file.is_foreign or is_named_like_image(name)):
        return Converted(file)
    try:
        png = to_png(data)
        info = check_image(png)
    except UnreadableFormatError as error:
        return Converted(file._replace(problem=file.problem or str(error), is_foreign=True))
    except BadImageError as error:
        return Converted(file._replace(problem=str(error), is_foreign=False))
    reason = file.problem or f"{pathlib.PurePath(name).suffix[1:].lower()}: not read by TensorFlow"
    return Converted(file._replace(decoded=info, problem="", is_foreign=False), png, reason)


def is_named_like_image(name: str) -> bool:
    """Returns True if the name has an ending of the formats that are tried."""
    return pathlib.PurePath(name).suffix.lower() in _suffixes()


def to_png(data: bytes) -> bytes:
    """Converts an image file to an upright png: gray, RGB, or RGBA where there is transparency. The first frame or page is taken.

    Gray images of 16 bits stay so. Whole numbers of 32 bits up to 65535 become 16 bits; floats in [0, 1] are multiplied by 65535, larger
    ones are rounded. Colours of more than 8 bits become 8 bits, as Pillow opens them.

    Raises:
        UnreadableFormatError: Pillow does not know the format.
        BadImageError: The file is cut or damaged, too large, or has values outside of 0 to 65535.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(data), formats=_formats()) as opened:
            kind = (opened.format or "").lower()
            if opened.width * opened.height > MAX_PIXELS:
                raise BadImageError(f"{opened.height} x {opened.width} pixels; at most {MAX_PIXELS:,} are decoded")
            image = _plain(ImageOps.exif_transpose(opened), kind)
    except BadImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise UnreadableFormatError("no image, or one that Pillow does not open") from error
    # Pillow's decoders raise errors of many kinds for damaged files.
    except Exception as error:
        raise BadImageError(f"a damaged or cut image, or one of a kind that Pillow does not decode ({error})") from error
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _plain(image: Image.Image, kind: str) -> Image.Image:
    """Returns an image of mode L, I;16, RGB or RGBA without metadata, which png would keep."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        plain = _gray_16_bit(np.asarray(image), kind)
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        plain = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    else:
        plain = image.convert("L" if image.mode in ("1", "L") else "RGB")
    plain.info = {}
    return plain


def _gray_16_bit(values: np.ndarray, kind: str) -> Image.Image:
    """Returns gray values, whole or float `[H, W]`, as an image of 16 bits."""
    from PIL import Image

    if values.dtype.kind == "f" and np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1:
        values = values * _LARGEST_16_BIT
    if not np.isfinite(values).all() or values.min() < 0 or values.max() > _LARGEST_16_BIT:
        raise BadImageError(f"a {kind} with values from {values.min():g} to {values.max():g}: scale them to 0 to {_LARGEST_16_BIT}")
    return Image.fromarray(np.rint(values).astype(np.uint16))


@functools.cache
def _formats() -> list[str]:
    """Returns Pillow's names of the formats that are tried."""
    from PIL import Image

    if importlib.util.find_spec("pillow_heif") is not None:
        import pillow_heif

        pillow_heif.register_heif_opener()
    Image.init()
    return [each for each in Image.ID if each not in _NOT_TRIED]


@functools.cache
def _suffixes() -> frozenset[str]:
    """Returns the endings of the names of image files that Pillow reads, in lower case."""
    from PIL import Image

    formats = _formats()
    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in formats)
