"""Records: what is written is what is read, by us and by TensorFlow; damage is found and named."""

from __future__ import annotations

import gzip
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow as tf
from fixtures import ROOT, is_one_line, run_here
from served import encoded, picture

from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import SourceName
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.pixel_rules import DEFAULT_RULES
from sela_tf.data.record_writer import Record, example_id, shard_name, write_manifest, write_shard
from sela_tf.data.records import IMAGE_KEY
from sela_tf.data.rules_of_images import with_rules
from sela_tf.data.sources.records import load_records

EVERYTHING = 2**40


def write(directory: pathlib.Path | str, splits: dict[str, list[list[Record]]], **about) -> None:
    shards = {
        split: [write_shard(str(directory), shard_name(split, i, len(parts)), part) for i, part in enumerate(parts)]
        for split, parts in splits.items()
    }
    write_manifest(str(directory), shards, {"channels": 3, "class_names": ["a", "b"], **about})


def pictures(rng, count: int, size=lambda i: (6, 5), prefix: str = "") -> list[Record]:
    """Images of which a few are not of colour."""
    made = []
    for i in range(count):
        image = picture(rng, "L" if i % 4 == 0 else "RGB", size(i))
        channels = 1 if i % 4 == 0 else 3
        made.append(Record(f"{prefix}{i:03d}.png", encoded(image, "PNG"), *size(i), channels, i % 2, "ab"[i % 2]))
    return made


@pytest.fixture
def directory(tmp_path, rng) -> pathlib.Path:
    """Twelve and five images of one size, in three shards and one."""
    train, held_out = pictures(rng, 12), pictures(rng, 5, prefix="test/")
    write(tmp_path / "records", {"train": [train[0::3], train[1::3], train[2::3]], "eval": [held_out]})
    return tmp_path / "records"


def load(directory: pathlib.Path | str, memory_limit: int = EVERYTHING):
    loaded = load_records(str(directory), source=SourceName(f"records:{directory}", "dataset"), memory_limit=memory_limit)
    return with_rules(loaded, DEFAULT_RULES, memory_limit=memory_limit)


class TestFormat:
    def test_tensorflow_reads_the_shards_as_any_other(self, directory, rng):
        wanted = pictures(np.random.default_rng(0), 12)
        found = {}
        for path in sorted((directory / "Split-train").iterdir()):
            for serialized in tf.data.TFRecordDataset(str(path), compression_type="GZIP").as_numpy_iterator():
                features = tf.train.Example.FromString(serialized).features.feature
                found[features["source_name"].bytes_list.value[0].decode()] = features
        assert sorted(found) == [record.name for record in wanted]
        for record in wanted:
            features = found[record.name]
            assert features[IMAGE_KEY].bytes_list.value[0] == record.encoded
            assert features["example_id"].bytes_list.value[0].decode() == example_id(record.name)
            assert features["image/class/label"].int64_list.value[0] == record.class_number
            assert features["image/class/text"].bytes_list.value[0].decode() == record.class_name
            numbers = [features[f"image/{key}"].int64_list.value[0] for key in ("height", "width", "channels")]
            assert numbers == [record.height, record.width, record.channels]

    def test_gzip_reads_them_too(self, directory):
        for path in directory.glob("Split-*/*"):
            assert len(gzip.decompress(path.read_bytes())) > 0

    def test_small_and_large_records_in_any_order(self, tmp_path, rng):
        """Compressed and stored parts make one file, for any reader."""
        records = pictures(rng, 12, lambda i: (64, 48) if i % 3 else (6, 5))
        write(tmp_path, {"train": [records]})
        (path,) = (tmp_path / "Split-train").iterdir()
        found = [*tf.data.TFRecordDataset(str(path), compression_type="GZIP").as_numpy_iterator()]
        assert found == [record.serialized() for record in records]
        assert min(map(len, found)) < 4096 < max(map(len, found))
        order = rng.permutation(12)
        files = load(tmp_path).train.encoded(tf.constant(order)).numpy()
        assert files.tolist() == [records[i].encoded for i in order]

    def test_the_same_records_are_the_same_bytes(self, directory, tmp_path):
        train, held_out = pictures(rng := np.random.default_rng(0), 12), pictures(rng, 5, prefix="test/")
        write(tmp_path / "again", {"train": [train[0::3], train[1::3], train[2::3]], "eval": [held_out]})
        files = sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
        assert len(files) == 6
        for file in files:
            assert (directory / file).read_bytes() == (tmp_path / "again" / file).read_bytes(), file

    def test_a_class_that_is_not_known_is_not_written(self, tmp_path, rng):
        write(
            tmp_path,
            {"train": [[record._replace(class_number=-1, class_name="") for record in pictures(rng, 3)]]},
            class_names=None,
        )
        (path,) = (tmp_path / "Split-train").iterdir()
        for serialized in tf.data.TFRecordDataset(str(path), compression_type="GZIP").as_numpy_iterator():
            assert not [key for key in tf.train.Example.FromString(serialized).features.feature if "class" in key]
        assert load(tmp_path).train.classes is None

    def test_what_fails_leaves_nothing(self, tmp_path, rng):
        def broken():
            yield from pictures(rng, 2)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            write_shard(str(tmp_path), shard_name("train", 0, 1), broken())
        assert list((tmp_path / "Split-train").iterdir()) == []


class TestReading:
    @pytest.mark.parametrize("memory_limit", [EVERYTHING, 0])
    def test_images_names_and_classes(self, directory, memory_limit):
        rng = np.random.default_rng(0)
        wanted = {"train": pictures(rng, 12), "eval": pictures(rng, 5, prefix="test/")}
        splits = load(directory, memory_limit)
        for split, images in (("train", splits.train), ("eval", splits.eval)):
            assert (images.images is None) == (memory_limit == 0)
            assert images.names == tuple(record.name for record in wanted[split])
            assert images.classes.tolist() == [record.class_number for record in wanted[split]]
            assert images.class_names == ("a", "b")
            assert images.image_size == (6, 5)
            (batch, _) = next(iter(inference_batches(images, size=(6, 5), batch_size=20, in_order=True)))
            for found, record in zip(batch.numpy(), wanted[split], strict=True):
                np.testing.assert_array_equal(found, tf.io.decode_image(record.encoded, channels=3).numpy())

    def test_parts_in_any_order(self, directory, rng):
        images = load(directory, 0).train
        order = rng.permutation(12)[:7]
        part = images.take(order)
        assert part.names == tuple(images.names[i] for i in order)
        found = part.encoded(tf.range(7, dtype=tf.int64)).numpy()
        assert found.tolist() == images.encoded(tf.constant(order)).numpy().tolist()
        assert part.fingerprint() != images.fingerprint()
        np.testing.assert_array_equal(part.store.checksums(), images.store.checksums()[order])
        assert part.take(np.argsort(order)).fingerprint() == images.take(np.sort(order)).fingerprint()

    def test_many_sizes_are_never_held_in_memory(self, tmp_path, rng):
        write(tmp_path, {"train": [pictures(rng, 8, lambda i: (6 + i % 3, 5))]})
        images = load(tmp_path).train
        assert images.images is None
        assert images.image_size is None
        assert sum(len(batch) for batch, _ in inference_batches(images, size=(4, 4), batch_size=3)) == 8

    def test_a_url(self, rng):
        """URLs of TensorFlow's file system in memory, which stands for gs:// and s3://."""
        write("ram://records", {"train": [pictures(rng, 4), pictures(rng, 4, prefix="b")]})
        images = load("ram://records", 0).train
        (batch, _) = next(iter(inference_batches(images, size=(6, 5), batch_size=20)))
        assert batch.shape == (8, 6, 5, 3)


def refused(directory: pathlib.Path, *words: str) -> None:
    with pytest.raises(SourceError) as caught:
        load(directory, 0)
    for word in words:
        assert word in str(caught.value), str(caught.value)


class TestDamage:
    shard = "Split-train/data_tfrecord-00001-of-00003.gz"

    def test_a_missing_shard(self, directory):
        (directory / self.shard).unlink()
        refused(directory, f"{self.shard} is missing, with 4 of the 12 examples", "ingest the images again")

    def test_every_cut_is_noticed_also_between_records(self, directory):
        index = pyarrow.parquet.read_table(directory / "index.parquet").to_pylist()
        ends = {row["offset"] + row["size"] for row in index if row["split"] == "train" and row["shard"] == 1}
        whole = (directory / self.shard).read_bytes()
        for length in [*range(0, len(whole), 7), *ends, len(whole) - 1]:
            (directory / self.shard).write_bytes(whole[:length])
            refused(directory, self.shard, f"{sum(end <= length for end in ends)} of its 4 records are whole")
        (directory / self.shard).write_bytes(whole + b"x")
        refused(directory, self.shard, f"has {len(whole) + 1} bytes, and {len(whole)} were written")

    def test_every_flipped_bit_is_noticed(self, directory, rng):
        whole = bytearray((directory / self.shard).read_bytes())
        index = [row for row in pyarrow.parquet.read_table(directory / "index.parquet").to_pylist() if row["split"] == "train"]
        for place in sorted({*rng.choice(len(whole), 60, replace=False), *range(12), *range(len(whole) - 12, len(whole))}):
            changed = whole.copy()
            changed[place] ^= 1 << rng.integers(8)
            (directory / self.shard).write_bytes(changed)
            (hit,) = [row for row in index if row["shard"] == 1 and row["offset"] <= place < row["offset"] + row["size"]] or [None]
            if hit is None:
                refused(directory, self.shard, "damaged before the first or after the last of its 4 records")
                continue
            images = load(directory, 0).train
            with pytest.raises(SourceError, match=f"{self.shard}: record {hit['record']} of 4, from 0, is damaged"):
                images.encoded(tf.range(12, dtype=tf.int64))
            others = [i for i, name in enumerate(images.names) if name != hit["name"]]
            assert len(images.encoded(tf.constant(others, tf.int64))) == 11

    def test_damaged_lists(self, directory):
        manifest = (directory / "manifest.json").read_text()
        (directory / "manifest.json").write_text(manifest.replace('"num_examples": 12', '"num_examples": 11'))
        refused(directory, "manifest.json", "was changed or damaged")
        (directory / "manifest.json").write_text(manifest[:100])
        refused(directory, "manifest.json", "is damaged")
        (directory / "manifest.json").unlink()
        refused(directory, "has no manifest.json", "components.data_ingestion")
        (directory / "manifest.json").write_text(manifest)
        (directory / "index.parquet").write_bytes((directory / "index.parquet").read_bytes()[:-1])
        refused(directory, "index.parquet", "was changed or damaged")
        (directory / "index.parquet").unlink()
        refused(directory, "index.parquet", "cannot be read")

    def test_at_the_door(self, directory, tmp_path):
        arguments = [
            f"--dataset=records:{directory}",
            "--backbone=resnet8",
            "--num_clusters=2",
            "--batch_size=4",
            "--num_heads=1",
            "--epochs=1",
        ]
        path = directory / self.shard
        changed = bytearray(path.read_bytes())
        changed[len(changed) // 2] ^= 1
        path.write_bytes(changed)
        commands = [[*arguments, f"--memory_limit={limit}", f"--workdir={tmp_path / str(limit)}"] for limit in (4, 1e-9)]
        for door in run_here(
            [*commands, [f"--dataset=records:{tmp_path}/no", "--workdir=/no"], ["--dataset=records:", "--workdir=/no"]]
        ):
            is_one_line(door, "records:" if "records:" in door.stderr else f"{self.shard}: record ", status=3)
            assert "Traceback" not in door.stderr


_PEAK = """
import resource, sys
import numpy as np
from sela_tf.data.augment import Augmentation
from sela_tf.data.image_set import SourceName
from sela_tf.data.pipeline import training_batches
from sela_tf.data.rules_of_images import with_rules
from sela_tf.data.sources.records import load_records
images = load_records(sys.argv[1], source=SourceName("records"), memory_limit=0).train
steps = len(images) // 16
batches = training_batches(images, size=(32, 32), augmentation=Augmentation(), batch_size=16, seed=0, first_step=0, last_step=2 * steps)
seen = np.concatenate([indices.numpy() for _, indices in batches])
for epoch in seen.reshape(2, -1):
    assert len(set(epoch.tolist())) == len(epoch)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_images(tmp_path, rng):
    """160 and 1600 images of 256 x 256, which decoded take 31 and 315 MB."""
    peaks = []
    for count in (160, 1600):
        image = encoded(picture(rng, "RGB", (256, 256)), "JPEG")
        records = (Record(f"{i:05d}", image, 256, 256, 3) for i in range(count))
        write(tmp_path / str(count), {"train": [list(records)]}, class_names=None)
        done = subprocess.run(
            [sys.executable, "-c", _PEAK, tmp_path / str(count)], capture_output=True, text=True, cwd=ROOT, check=False
        )
        assert done.returncode == 0, done.stderr
        peaks.append(float(done.stdout))
    print(peaks)
    assert peaks[1] < peaks[0] + 150, peaks
