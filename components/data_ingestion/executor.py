"""Ingestion: `ingest(settings)` reads and checks every image once, on threads or by Apache Beam, and writes the artifact Examples.

One worker reads all images of a shard and writes the shard. So the bytes do not depend on the number of workers, and a worker has one
image in memory at a time. (Beam's own sink for TFRecords repeats neither the bytes nor the images of a shard.)
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from components import artifacts
from components.data_ingestion import output
from components.data_ingestion.planning import Plan, files_of, plan
from components.data_ingestion.tasks import INSPECT, WRITE
from components.errors import storage_errors
from components.settings import IngestionSettings
from sela_tf.data.decoding import ImageInfo
from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import SourceName
from sela_tf.data.left_out import ImageNote, check_rejected, in_words
from sela_tf.data.listing import FileInfo, size_and_time
from sela_tf.data.record_writer import Shard, shard_name, write_manifest
from sela_tf.data.records import FEATURES, INDEX, MANIFEST, read_manifest
from sela_tf.data.sources.records import load_records
from sela_tf.settings.fields import ConfigError
from sela_tf.tasks.task_files import write_text
from sela_tf.tasks.workers import Workers, refuse_without_beam

REJECTED, CONVERTED, SCHEMA = "rejected.json", "converted.json", "schema.pbtxt"
_NAME = "data_ingestion"
_NAMES = ("Split-", MANIFEST, INDEX, REJECTED, CONVERTED, SCHEMA)
"""Beginnings of the names of what is written."""
_INSPECTED_AT_ONCE = 500


def ingest(settings: IngestionSettings) -> dict[str, Any]:
    """Writes records (`sela_tf.data.records`) of a data set, with schema.pbtxt (tensorflow-metadata), rejected.json and converted.json.

    Nothing is done if the directory already holds the records of the same input.

    Args:
        settings: The data set, the directory and all options.

    Returns:
        The manifest.

    Raises:
        ConfigError: Beam is asked for and missing, or the directory cannot be used, or another ingestion is writing it.
        SourceError: The images cannot be used.
        WorkerLostError: A worker has ended before its work was done.
        StorageError: The disk is full, or cannot be written for another reason.
    """
    if settings.beam_pipeline_args:
        refuse_without_beam(f"beam_pipeline_args={','.join(settings.beam_pipeline_args)}")
    directory = settings.examples
    artifacts.refuse_foreign(directory, "examples", _NAME)
    made_of = _made_of(settings)
    if artifacts.is_current(directory, made_of):
        with contextlib.suppress(SourceError):
            load_records(directory, source=SourceName(f"records:{directory}"), memory_limit=0)
            print(f"unchanged since it was ingested: {directory}", flush=True)
            return read_manifest(directory, name=f"records:{directory}")
    before = artifacts.read_made_of(directory)
    if before is not None and before["settings"]["dataset"] != settings.dataset:
        raise ConfigError(
            f"`examples={directory}` holds examples of `dataset={before['settings']['dataset']}`: name another directory"
        )
    with storage_errors(directory), output.scratch_beside(directory) as scratch:
        staging = f"{scratch}/records"
        tf.io.gfile.makedirs(staging)
        with Workers(scratch, settings.beam_pipeline_args) as workers:
            manifest = _ingest(settings, staging, workers)
        # The old records stay until all new ones are written.
        output.put_in_place(scratch, staging, directory, made_of, names=_NAMES)
    return manifest


def _ingest(settings: IngestionSettings, directory: str, workers: Workers) -> dict[str, Any]:
    """Plans and writes all shards, the schema and the manifest into `directory`, and returns the manifest."""

    def inspect(root: str, names: Sequence[str]) -> list[tuple[FileInfo, str]]:
        parts = [[root, *names[i : i + _INSPECTED_AT_ONCE]] for i in range(0, len(names), _INSPECTED_AT_ONCE)]
        found = workers.run(INSPECT, parts, f"checking {len(names)} files")
        files = [(FileInfo(*file), reason) for part in found for file, reason in part]
        return [
            (file if file.decoded is None else file._replace(decoded=ImageInfo(*file.decoded)), reason) for file, reason in files
        ]

    planned = plan(settings, inspect)
    for line in planned.report:
        print(line, flush=True)
    parts = [
        (split, shard_name(split, number, len(shards)), part)
        for split, shards in planned.shards.items()
        for number, part in enumerate(shards)
    ]
    tasks = [[directory, file, type(part).__name__, part] for _, file, part in parts]
    written: dict[str, list[Shard]] = {split: [] for split in planned.shards}
    rejected = list(planned.rejected)
    for (split, *_), (shard, left_out) in zip(parts, workers.run(WRITE, tasks, f"writing {len(tasks)} shards"), strict=True):
        written[split].append(Shard(*shard))
        rejected += [ImageNote(*each) for each in left_out]
    rows = [row for shards in written.values() for shard in shards for row in shard.rows]
    has_numbers = any(row["class"] >= 0 for row in rows)
    if not has_numbers:
        _number_words(rows)
    _refuse_or_report(settings, written, rejected, already_told=len(planned.rejected))
    for file, images in ((REJECTED, rejected), (CONVERTED, planned.converted)):
        write_text(f"{directory}/{file}", json.dumps([each._asdict() for each in sorted(images)], indent=1) + "\n")
    about = _about(settings, planned, rows, rejected)
    write_text(f"{directory}/{SCHEMA}", _schema(rows, about["class_names"], has_numbers=has_numbers))
    return write_manifest(directory, written, about)


def input_digest(settings: IngestionSettings) -> str:
    """Returns a digest of the names, sizes and times of all files of the data set, by which a change of it is noticed.

    Raises:
        ConfigError: The directory to write holds the data set.
        SourceError: The data set does not exist.
    """
    digest = hashlib.sha256()
    for setting in ("dataset", "eval_dataset"):
        source = getattr(settings, setting)
        if not source:
            continue
        for path in files_of(source, setting=setting, data_dir=settings.data_dir, download=settings.download):
            if f"{path}/".startswith(f"{settings.examples}/"):
                raise ConfigError(
                    f"`examples={settings.examples}` holds what is to be ingested ({path}): name a directory elsewhere"
                )
            if not tf.io.gfile.exists(path):  # A broken link is reported later.
                continue
            size, time_ns = size_and_time(path)
            digest.update(f"{path}\0{size}\0{time_ns}\0".encode())
    return digest.hexdigest()


def _made_of(settings: IngestionSettings) -> dict[str, Any]:
    """Returns the settings that count, and the digest of the data set."""
    own = ("examples", "beam_pipeline_args", "download", "memory_limit")
    said = {name: value for name, value in vars(settings).items() if name not in own}
    return {"component": _NAME, "settings": said, "input": input_digest(settings)}


def _refuse_or_report(
    settings: IngestionSettings, written: dict[str, list[Shard]], rejected: Sequence[ImageNote], *, already_told: int
) -> None:
    """Checks the written shards and prints their numbers of images.

    Args:
        settings: The settings of the ingestion.
        written: Shards by split.
        rejected: All images that were left out.
        already_told: The number of them that the plan has reported.

    Raises:
        SourceError: More images are damaged than `max_rejected` allows, a split is empty, or two images have one name.
    """
    new = rejected[already_told:]
    rows = {split: [row for shard in shards for row in shard.rows] for split, shards in written.items()}
    total = len(new) + sum(map(len, rows.values()))
    check_rejected(new, total, settings.max_rejected, source=f"`dataset={settings.dataset}`")
    if new:
        print(f"left out, {len(new)} images: {in_words(new)}", flush=True)
    if not any(rows.values()):
        raise SourceError(f"`dataset={settings.dataset}`: no image in it")
    for split, found in rows.items():
        if not found:
            raise SourceError(
                f"`dataset={settings.dataset}`: no image is left for the split {split!r}: choose another `eval_fraction`, or name an "
                "`eval_dataset`"
            )
        size = sum(shard.size for shard in written[split])
        print(f"{split}: {len(found)} images in {len(written[split])} shards, {size / 1e6:.1f} MB", flush=True)
        unknown = sum(row["class"] < 0 for row in found)
        if 0 < unknown < len(found):
            print(f"{split}: {unknown} of {len(found)} images have no class, so that classes are not used", flush=True)
    names = collections.Counter(row["name"] for found in rows.values() for row in found)
    (name, times), *_ = names.most_common(1)
    if times > 1:
        raise SourceError(
            f"`dataset={settings.dataset}`: {sum(count > 1 for count in names.values())} images would have the name of another, such as "
            f"{name!r}: rename their directory"
        )


def _number_words(rows: Sequence[dict[str, Any]]) -> None:
    """Numbers the classes of rows of the index that have words only, in the order of the words."""
    numbers = {name: number for number, name in enumerate(sorted({row["class_name"] for row in rows} - {""}))}
    for row in rows:
        row["class"] = numbers.get(row["class_name"], -1)


def _about(
    settings: IngestionSettings, planned: Plan, rows: Sequence[dict[str, Any]], rejected: Sequence[ImageNote]
) -> dict[str, Any]:
    """Returns the manifest's entries about the data. It has no path of this machine, so that the same images have the same manifest anywhere."""
    class_names = planned.class_names or _class_names(rows)
    shapes = collections.Counter(f"{row['height']} x {row['width']} x {row['channels']}" for row in rows)
    return {
        "source": settings.dataset.partition(":")[0],
        "split_rule": planned.split_rule,
        "class_names": None if class_names is None else list(class_names),
        # A single colour image makes it a colour set, so that no colour is lost.
        "channels": 3 if any(row["channels"] >= 3 for row in rows) else 1,
        "shapes": dict(sorted(shapes.most_common(100))),
        "num_rejected": len(rejected),
    }


def _class_names(rows: Sequence[dict[str, Any]]) -> list[str] | None:
    """Returns the names of the classes as the records have them; None unless each number from 0 has exactly one name."""
    pairs = {(row["class"], row["class_name"]) for row in rows}
    found = dict(pairs)
    good = len(found) == len(pairs) and "" not in found.values() and sorted(found) == list(range(len(found)))
    return [found[number] for number in sorted(found)] if good else None


def _schema(rows: Sequence[dict[str, Any]], class_names: Sequence[str] | None, *, has_numbers: bool) -> str:
    """Returns the schema for TensorFlow Data Validation and TFX, in the text format of protocol buffers.

    Args:
        rows: Rows of the index.
        class_names: Names of the classes, by number; None if they have none.
        has_numbers: True if the examples hold the numbers of their classes.
    """
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    present = {
        "image/class/label": has_numbers,
        "image/class/text": any(row["class_name"] for row in rows),
    }
    schema = schema_pb2.Schema()
    for name, meaning in FEATURES.items():
        if not present.get(name, True):
            continue
        is_number = name in ("image/height", "image/width", "image/channels", "image/class/label")
        feature = schema.feature.add(name=name, type=schema_pb2.INT if is_number else schema_pb2.BYTES)
        feature.annotation.comment.append(meaning)
        feature.presence.min_count = 1
        feature.shape.dim.add(size=1)
        if name == "image/encoded":
            feature.presence.min_fraction = 1.0
            feature.image_domain.SetInParent()
        if name == "image/class/label" and class_names:
            feature.int_domain.min, feature.int_domain.max = 0, len(class_names) - 1
            feature.int_domain.is_categorical = True
    return text_format.MessageToString(schema)
