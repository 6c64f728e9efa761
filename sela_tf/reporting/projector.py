"""The files that TensorBoard's projector shows: points, what is known of them, and their pictures."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from sela_tf.files.atomic import whole_file, write_whole
from sela_tf.reporting.small_pictures import sprite

MAX_POINTS = 10_000
"""The most points of a projector: more pictures do not fit into a sprite at a size at which something can be seen."""
_CONFIG = "projector_config.pbtxt"
"""The file that names the others. It is written last."""
_VECTORS, _METADATA, _SPRITE = "embedding.tsv", "metadata.tsv", "sprite.png"


def projector_files(directory: pathlib.Path) -> tuple[pathlib.Path, ...]:
    """Returns the paths of all files that `write_projector` may write."""
    return tuple(directory / name for name in (_CONFIG, _VECTORS, _METADATA, _SPRITE))


def write_projector(
    directory: pathlib.Path, embedding: np.ndarray, columns: Mapping[str, np.ndarray], pictures: Sequence[bytes] | None
) -> None:
    """Writes a directory that TensorBoard's projector shows, alone or beside the events of a run.

    Args:
        directory: is made if it is missing. Files of an earlier call are replaced.
        embedding: the points, float [n, D], at most MAX_POINTS.
        columns: two or more arrays [n] by name: what is shown of each point. NaN is shown as nothing.
        pictures: jpeg files of the n points, all of one size; None for points without pictures.

    Raises:
        OSError: a file cannot be written.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with whole_file(directory / _VECTORS) as unfinished:
        # TensorBoard takes binary files for text where their bytes happen to be UTF-8.
        np.savetxt(unfinished, embedding, fmt="%.6g", delimiter="\t")
    rows = zip(*columns.values(), strict=True)
    table = "".join("\t".join(map(_cell, row)) + "\n" for row in (columns, *rows))
    with whole_file(directory / _METADATA) as unfinished:
        unfinished.write_text(table, encoding="utf-8", errors="replace")
    shown = ""
    if pictures is not None:
        sheet, (height, width) = sprite(pictures)
        with whole_file(directory / _SPRITE) as unfinished:
            unfinished.write_bytes(sheet)
        shown = f'  sprite {{ image_path: "{_SPRITE}" single_image_dim: {width} single_image_dim: {height} }}\n'
    # The paths are relative: the directory can be moved.
    write_whole(
        directory / _CONFIG,
        f'embeddings {{\n  tensor_name: "embedding"\n  tensor_path: "{_VECTORS}"\n  metadata_path: "{_METADATA}"\n{shown}}}\n',
    )


def _cell(value: object) -> str:
    """Returns a value as text without tabs and line breaks, which names of files may have."""
    if isinstance(value, np.floating):
        return "" if np.isnan(value) else f"{value:.4g}"
    return " ".join(str(value).split())
