"""Image files of rare kinds, which tests make with Pillow or by hand."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image
from served import encoded

MASKS = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
RGBA_MASKS = struct.pack("<IIII", 0xFF, 0xFF00, 0xFF0000, 0xFF000000)


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


def laid(image: Image.Image, background=(255, 255, 255)) -> np.ndarray:
    """The image on a background, in double precision, rounded once: uint8 [h, w, 3]."""
    rgba = np.asarray(image.convert("RGBA")).astype(np.float64)
    alpha = rgba[..., 3:]
    return np.floor((rgba[..., :3] * alpha + np.array(background) * (255 - alpha)) / 255 + 0.5).astype(np.uint8)


def oriented(image: Image.Image, kind: str, orientation: int, *, order: str = "<", **options) -> bytes:
    exif = Image.Exif()
    exif.endian = order
    exif[0x010F], exif[0x0112], exif[0x0132] = "maker", orientation, "2020:01:01 00:00:00"
    return encoded(image, kind, exif=exif.tobytes() if kind != "png" else exif, **options)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(values: np.ndarray, *, bits: int = 8, colours: int = 0, key: bytes = b"") -> bytes:
    """A png of rows of packed values, uint8 [h, bytes] or of 16 bits [h, w] or [h, w, C], with a transparent colour."""
    width = values.shape[1] * 8 // bits if bits < 8 else values.shape[1]
    rows = b"".join(b"\0" + row.astype(">u2" if bits == 16 else np.uint8).tobytes() for row in values)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, len(values), bits, colours, 0, 0, 0))
    transparent = chunk(b"tRNS", key) if key else b""
    return b"\x89PNG\r\n\x1a\n" + head + transparent + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def bmp(
    values: np.ndarray, bits: int, *, compression: int = 0, masks: bytes = b"", header: int = 40, from_top: bool = False, palette: bytes = b"",
    reserved: int = 0,
) -> bytes:  # fmt: skip
    """A bitmap of rows of bytes, uint8 [h, bytes] of a width that `bits` tells."""
    height, width = len(values), values.reshape(len(values), -1).shape[1] * 8 // max(bits, 1)
    rows = values if from_top else values[::-1]
    body = b"".join(row.tobytes().ljust(-(-row.nbytes // 4) * 4, b"\0") for row in rows)
    if header == 12:
        second = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        sides = (width, -height if from_top else height)
        second = struct.pack("<IiiHHIIiiII", header, *sides, 1, bits, compression, len(body), 0, 0, 0, 0)
        if header > 40:
            second, masks = (second + masks).ljust(header, b"\0"), b""
    begin = 14 + len(second) + len(masks) + len(palette)
    return b"BM" + struct.pack("<III", begin + len(body), reserved, begin) + second + masks + palette + body
