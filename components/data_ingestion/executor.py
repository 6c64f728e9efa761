"""Ingestion: `ingest(settings)` reads and checks every image once, by Apache Beam, and writes the artifact Examples.

A shard is a unit of work: one worker reads its images and writes it whole, so that the bytes do not depend on how many workers there are,
and no more than one image is in memory. (Beam's own sink for TFRecords repeats neither the bytes nor what is in a shard.)
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from components import artifacts
from components.data_ingestion.inputs import Plan, files_of, plan
from components.data_ingestion.parts import Rejected
from components.data_ingestion.workers import Workers, write_text
from components.settings import IngestionSettings
from sela_tf.data.decoding import ImageInfo
from sela_tf.data.errors import SourceError
from sela_tf.data.listing import LookedAt, size_and_time, walk
from sela_tf.data.record_writer import Shard, shard_name, write_manifest
from sela_tf.data.records import FEATURES, INDEX, MANIFEST, read_manifest
from sela_tf.data.sources.records import load_records
from sela_tf.settings.fields import ConfigError

REJECTED, SCHEMA = "rejected.json", "schema.pbtxt"
_NAME = "data_ingestion"
_SCRATCH = ".unfinished-"
"""Begins the name of the directory beside the examples where they are made."""
_LOOKED_AT_ONCE = 500
_SHOWN = 5


def ingest(settings: IngestionSettings) -> dict[str, Any]:
    """Writes what `sela_tf.data.records` describes, and beside it schema.pbtxt (tensorflow-metadata) and rejected.json.

    Returns:
        The manifest. If the directory holds what the same input made, nothing is done.

    Raises:
        ValueError: Beam is missing, or the directory will not do (ConfigError); the images will not do (SourceError).
    """
    if importlib.util.find_spec("apache_beam") is None:
        raise ConfigError("ingestion needs Apache Beam: pip install 'sela-tf[beam]'")
    directory = settings.examples
    artifacts.refuse_foreign(directory, "examples", _NAME)
    made_of = _made_of(settings)
    if artifacts.is_current(directory, made_of):
        with contextlib.suppress(SourceError):
            load_records(directory, name=f"records:{directory}", memory_limit=0)
            print(f"unchanged since it was ingested: {directory}", flush=True)
            return read_manifest(directory, name=f"records:{directory}")
    before = artifacts.read_made_of(directory)
    if before is not None and before["settings"]["dataset"] != settings.dataset:
        raise ConfigError(
            f"--examples={directory} holds examples of --dataset={before['settings']['dataset']}: name another directory"
        )
    # what is there stays until all of the new is there
    place, _, name = directory.rpartition("/")
    with _scratch(f"{place}/{_SCRATCH}{name}") as scratch:
        staging = f"{scratch}/records"
        tf.io.gfile.makedirs(staging)
        manifest = _ingest(settings, staging, Workers(scratch, settings.beam_pipeline_args))
        artifacts.start(directory, "examples", _NAME, clear=("Split-", MANIFEST, INDEX, REJECTED, SCHEMA))
        for name in walk(staging, name=staging):
            tf.io.gfile.makedirs(os.path.dirname(f"{directory}/{name}"))
            tf.io.gfile.rename(f"{staging}/{name}", f"{directory}/{name}", overwrite=True)
    artifacts.finish(directory, made_of)
    return manifest


def _ingest(settings: IngestionSettings, directory: str, workers: Workers) -> dict[str, Any]:
    def look(root: str, names: Sequence[str]) -> list[LookedAt]:
        parts = [[root, *names[i : i + _LOOKED_AT_ONCE]] for i in range(0, len(names), _LOOKED_AT_ONCE)]
        found = workers.run("look", parts, "checking", len(names))
        files = [LookedAt(*file) for part in found for file in part]
        return [file if file.info is None else file._replace(info=ImageInfo(*file.info)) for file in files]

    planned = plan(settings, look)
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
    for (split, *_), (shard, left_out) in zip(parts, workers.run("write", tasks, "writing", len(tasks)), strict=True):
        written[split].append(Shard(*shard))
        rejected += [Rejected(*each) for each in left_out]
    _refuse_or_report(settings, written, rejected, already_told=len(planned.rejected))
    write_text(f"{directory}/{REJECTED}", json.dumps([each._asdict() for each in sorted(rejected)], indent=1) + "\n")
    about = _about(settings, planned, written, rejected)
    write_text(f"{directory}/{SCHEMA}", _schema(written, about["class_names"]))
    return write_manifest(directory, written, about)


def _made_of(settings: IngestionSettings) -> dict[str, Any]:
    """The settings, and size and time of every file that is read."""
    digest = hashlib.sha256()
    for flag in ("dataset", "eval_dataset"):
        source = getattr(settings, flag)
        if not source:
            continue
        for path in files_of(source, flag=f"--{flag}", data_dir=settings.data_dir, download=settings.download):
            if f"{path}/".startswith(f"{settings.examples}/"):
                raise ConfigError(
                    f"--examples={settings.examples} holds what is to be ingested ({path}): name a directory elsewhere"
                )
            if not tf.io.gfile.exists(path):  # a link to nothing, which will be told
                continue
            size, time_ns = size_and_time(path)
            digest.update(f"{path}\0{size}\0{time_ns}\0".encode())
    own = ("examples", "beam_pipeline_args", "download", "memory_limit")
    said = {name: value for name, value in vars(settings).items() if name not in own}
    return {"component": _NAME, "settings": said, "input": digest.hexdigest()}


def _refuse_or_report(
    settings: IngestionSettings, written: dict[str, list[Shard]], rejected: Sequence[Rejected], *, already_told: int
) -> None:
    """Raises:
    SourceError: images are damaged and not to be skipped, or a split is empty.
    """
    new = rejected[already_told:]
    shown = "; ".join(f"{each.name} ({each.reason})" for each in new[:_SHOWN]) + ("; …" if len(new) > _SHOWN else "")
    if new and not settings.skip_bad_images:
        raise SourceError(
            f"--dataset={settings.dataset}: {len(new)} images cannot be read: {shown}. Leave them out with --skip_bad_images"
        )
    if new:
        print(f"left out, {len(new)} images: {shown}", flush=True)
    rows = {split: [row for shard in shards for row in shard.rows] for split, shards in written.items()}
    if not any(rows.values()):
        raise SourceError(f"--dataset={settings.dataset}: no image in it")
    for split, found in rows.items():
        if not found:
            raise SourceError(
                f"--dataset={settings.dataset}: no image is left for the split {split!r}: choose another --eval_fraction, or name an "
                "--eval_dataset"
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
            f"--dataset={settings.dataset}: {sum(count > 1 for count in names.values())} images would have the name of another, such as "
            f"{name!r}: rename their directory"
        )


def _about(
    settings: IngestionSettings, planned: Plan, written: dict[str, list[Shard]], rejected: Sequence[Rejected]
) -> dict[str, Any]:
    """What the manifest says besides counts and digests. No path of this machine: the same images have the same manifest anywhere."""
    rows = [row for shards in written.values() for shard in shards for row in shard.rows]
    class_names = planned.class_names or _class_names(rows)
    shapes = collections.Counter(f"{row['height']} x {row['width']} x {row['channels']}" for row in rows)
    return {
        "source": settings.dataset.partition(":")[0],
        "split_rule": planned.split_rule,
        "class_names": None if class_names is None else list(class_names),
        # one colour image makes it a colour set, so that nothing is lost
        "channels": 3 if any(row["channels"] >= 3 for row in rows) else 1,
        "shapes": dict(sorted(shapes.most_common(100))),
        "num_rejected": len(rejected),
    }


def _class_names(rows: Sequence[dict[str, Any]]) -> list[str] | None:
    """As the records themselves have them, where each number from 0 on has one name."""
    pairs = {(row["class"], row["class_name"]) for row in rows}
    found = dict(pairs)
    good = len(found) == len(pairs) and "" not in found.values() and sorted(found) == list(range(len(found)))
    return [found[number] for number in sorted(found)] if good else None


def _schema(written: dict[str, list[Shard]], class_names: Sequence[str] | None) -> str:
    """For TensorFlow Data Validation and TFX, in protobuf's text format."""
    from google.protobuf import text_format
    from tensorflow_metadata.proto.v0 import schema_pb2

    rows = [row for shards in written.values() for shard in shards for row in shard.rows]
    present = {
        "image/class/label": any(row["class"] >= 0 for row in rows),
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


@contextlib.contextmanager
def _scratch(path: str) -> Iterator[str]:
    if tf.io.gfile.exists(path):  # of one that was killed
        tf.io.gfile.rmtree(path)
    tf.io.gfile.makedirs(path)
    try:
        yield path
    finally:
        tf.io.gfile.rmtree(path)
