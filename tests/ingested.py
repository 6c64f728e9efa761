"""Helpers of the tests of ingestion: it is done in this process, and the records are loaded."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
from served import encoded, picture

from components.data_ingestion.executor import ingest
from components.settings import IngestionSettings
from sela_tf.data.sources import load_source

IN_PROCESS = ("--runner=FnApiRunner", "--direct_running_mode=in_memory")
PROCESSES = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", "--direct_num_workers=2")
"""Options of Beam: all of it in one process, and workers in processes."""

# Beam's, on importing and on a pipeline's end
MARKS = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ImportWarning"),
    pytest.mark.xdist_group("beam"),
]


def ingested(dataset: str, examples: pathlib.Path | str, **changes):
    """Ingests in this process, and loads the records."""
    settings = IngestionSettings(dataset=dataset, examples=str(examples), **changes)
    manifest = ingest(settings)
    return manifest, load_source(f"records:{settings.examples}")


def files_of(directory: pathlib.Path) -> dict[str, bytes]:
    """The bytes of each file by its path in `directory`, without made_of.json, which says when the input was read."""
    paths = [path for path in directory.rglob("*") if path.is_file() and path.name != "made_of.json"]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def make_folder(root: pathlib.Path) -> pathlib.Path:
    """Sixty images of two classes, of many sizes and modes, and what is to be left out."""
    rng = np.random.default_rng(0)
    kinds = [("PNG", "RGB"), ("JPEG", "RGB"), ("PNG", "L"), ("JPEG", "CMYK"), ("BMP", "RGB")]
    for name in ("cats", "dogs"):
        (root / name).mkdir(parents=True)
    for i in range(60):
        kind, mode = kinds[i % 5]
        image = encoded(picture(rng, mode, (12 + i % 5, 10)), kind)
        (root / ("cats" if i % 3 else "dogs") / f"ü {i}.{kind.lower()}").write_bytes(image)
    (root / "notes.txt").write_text("no image")
    (root / "cats" / "new.heic").write_bytes(b"\x00\x00\x00\x18ftypheic")
    return root
