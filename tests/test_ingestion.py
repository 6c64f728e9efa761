"""Ingestion by Beam: any source to the same records, whoever does the work."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from ingested import IN_PROCESS, MARKS, PROCESSES, files_of, ingested, make_folder
from served import encoded, picture

from sela_tf.data.errors import SourceError
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.data.splits import hold_out

pytestmark = MARKS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("folder") / "images")


def pixels_of(images, size) -> np.ndarray:
    return np.concatenate(
        [batch for batch, _ in inference_batches(images, size=size, batch_size=100, in_order=True).as_numpy_iterator()]
    )


def are_the_same(found, wanted, size=(12, 10)) -> None:
    """Images, order and classes."""
    assert len(found) == len(wanted)
    np.testing.assert_array_equal(pixels_of(found, size), pixels_of(wanted, size))
    if wanted.classes is None:
        assert found.classes is None
    elif wanted.class_names:
        assert found.class_names == wanted.class_names
        assert found.classes.tolist() == wanted.classes.tolist()
    else:
        assert found.classes.tolist() == wanted.classes.tolist()


class TestSources:
    def test_a_folder(self, folder, tmp_path):
        manifest, found = ingested(f"folder:{folder}", tmp_path / "records", images_per_shard=20, eval_fraction=0.2)
        train, held_out = hold_out(load_source(f"folder:{folder}").train, 0.2)
        assert found.train.names == train.names
        are_the_same(found.train, train)
        are_the_same(found.eval, held_out)
        assert len(list((tmp_path / "records" / "Split-train").iterdir())) == -(-len(train) // 20)
        assert manifest["shapes"] == {f"{12 + i} x 10 x {1 if i == 2 else 3}": 12 for i in range(5)}
        counts = [shard["num_examples"] for shard in manifest["splits"]["train"]["shards"]]
        assert sum(counts) == len(train)
        assert min(counts) > len(train) / len(counts) / 2  # a hash shares them out
        assert manifest["class_names"] == ["cats", "dogs"]
        rejected = json.loads((tmp_path / "records" / "rejected.json").read_text())
        assert rejected == [{"name": "cats/new.heic", "reason": "heic: convert it to png"}]

    def test_images_that_tensorflow_does_not_read_become_png(self, tmp_path, rng):
        wanted = {}
        for i, (kind, suffix) in enumerate([("TIFF", "tif"), ("PPM", "ppm"), ("PCX", "pcx"), ("PNG", "png")] * 4):
            name = f"{('Training', 'Testing')[i // 8]}/{'ab'[i // 4 % 2]}/patient {i % 2}/{i:02d}, .{suffix}"
            (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            image = picture(rng, "RGB", (12, 10))
            (tmp_path / "images" / name).write_bytes(encoded(image, kind))
            wanted[name] = np.asarray(image)
        (tmp_path / "images" / "@eaDir").mkdir()
        (tmp_path / "images" / "@eaDir" / "thumbnail.jpg").write_bytes(b"")
        _, found = ingested(f"folder:{tmp_path}/images", tmp_path / "records")
        assert set(found.eval.names) == {name for name in wanted if name.startswith("Testing/")}
        assert found.train.class_names == ("a", "b")
        assert found.train.classes.tolist() == [0] * 4 + [1] * 4
        for part in (found.train, found.eval):
            np.testing.assert_array_equal(pixels_of(part, (12, 10)), np.stack([wanted[name] for name in part.names]))
        assert set(found.train.names + found.eval.names) == set(wanted)
        converted = json.loads((tmp_path / "records" / "converted.json").read_text())
        assert [each["name"] for each in converted] == sorted(name for name in wanted if not name.endswith("png"))
        assert json.loads((tmp_path / "records" / "rejected.json").read_text()) == []
        (tmp_path / "images" / "Testing" / "cut.ppm").write_bytes(b"P6 9 9 255 too short")
        with pytest.raises(
            SourceError, match=r"1 of 17 images cannot be read, `max_rejected=0`: Testing/cut.ppm \(a damaged or cut image"
        ):
            ingested(f"folder:{tmp_path}/images", tmp_path / "records")

    @pytest.mark.slow
    def test_threads_processes_and_a_copy_give_the_same_bytes(self, folder, tmp_path):
        """Threads of this process, Beam in it, and two real worker processes of Beam."""
        for name, workers in (("threads", ()), ("beam", IN_PROCESS), ("processes", PROCESSES)):
            ingested(f"folder:{folder}", tmp_path / name, images_per_shard=10, beam_pipeline_args=workers)
        one = files_of(tmp_path / "threads")
        assert len(one) == 5 + 6 + 1
        assert one == files_of(tmp_path / "beam") == files_of(tmp_path / "processes")
        copy = tmp_path / "copy" / "elsewhere"
        copy.parent.mkdir()
        subprocess.run(["cp", "-r", folder, copy], check=True)
        ingested(f"folder:{copy}", tmp_path / "3", images_per_shard=10)
        assert files_of(tmp_path / "3") == one

    def test_own_splits(self, folder, tmp_path, rng):
        for split in ("train", "val"):
            for label in ("a", "b"):
                (tmp_path / "images" / split / label).mkdir(parents=True)
                for i in range(4):
                    (tmp_path / "images" / split / label / f"{i}.png").write_bytes(encoded(picture(rng), "PNG"))
        manifest, found = ingested(f"folder:{tmp_path}/images", tmp_path / "records")
        assert (len(found.train), len(found.eval)) == (8, 8)
        assert manifest["split_rule"] == "the data set's own splits"
        assert found.train.names[0] == "train/a/0.png"
        # the same images as another data set
        manifest, found = ingested(
            f"folder:{tmp_path}/images/train", tmp_path / "other", eval_dataset=f"folder:{tmp_path}/images/val", classes="none"
        )
        assert found.eval.names[0] == "eval_dataset/a/0.png"
        assert found.train.classes is None

    def test_arrays(self, tmp_path, rng):
        """Arrays of npz, idx and digits go one way."""
        images, classes = rng.integers(0, 256, (50, 12, 10, 3), dtype=np.uint8), np.arange(50) % 3
        np.savez(tmp_path / "images.npz", images=images, classes=classes)
        manifest, found = ingested(f"npz:{tmp_path}/images.npz", tmp_path / "records", images_per_shard=10)
        train, held_out = hold_out(load_source(f"npz:{tmp_path}/images.npz").train, 0.1)
        are_the_same(found.train, train)
        are_the_same(found.eval, held_out)
        assert manifest["class_names"] is None
        assert found.train.fingerprint() == train.fingerprint()  # so that labels of one are labels of the other
        np.savez(tmp_path / "both.npz", images=images[:40], eval_images=images[40:])
        _, found = ingested(f"npz:{tmp_path}/both.npz", tmp_path / "both")
        assert (len(found.train), len(found.eval), found.train.classes) == (40, 10, None)

    @pytest.mark.slow
    def test_somebody_elses_tfrecords(self, tmp_path, rng):
        def example(i: int) -> bytes:
            features = {
                "img": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded(picture(rng, "RGB", (12, 10)), "PNG")])),
                "y": tf.train.Feature(int64_list=tf.train.Int64List(value=[i % 2])),
            }
            return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()

        kept = []
        for name, options in (("a/one.tfrecord", ""), ("b/two.gz", "GZIP")):
            (tmp_path / name).parent.mkdir()
            with tf.io.TFRecordWriter(str(tmp_path / name), options) as writer:
                for i in range(30):
                    kept.append(example(i))
                    writer.write(kept[-1])
        asked = {"image_key": "img", "label_key": "y", "eval_fraction": 0.3}
        _, found = ingested(f"tfrecords:{tmp_path}/?/*", tmp_path / "records", **asked)
        names = found.train.names + found.eval.names
        assert sorted(names) == [f"{file}/{i:010d}" for file in ("a/one.tfrecord", "b/two.gz") for i in range(30)]
        place = dict(zip(names, [*found.train.classes, *found.eval.classes], strict=True))
        assert [place[name] for name in sorted(names)] == [i % 2 for i in range(30)] * 2
        (batch, _) = next(iter(inference_batches(found.train, size=(12, 10), batch_size=1, in_order=True)))
        number = int(found.train.names[0].split("/")[-1])
        file = tf.train.Example.FromString(kept[number]).features.feature["img"].bytes_list.value[0]
        np.testing.assert_array_equal(batch[0], tf.io.decode_png(file))

        with pytest.raises(
            SourceError,
            match=r"record 0 has 0 values under 'image/encoded', not one \(it has img, y\): say where it is with `image_key`",
        ):
            ingested(f"tfrecords:{tmp_path}/?/*", tmp_path / "wrong")
        (tmp_path / "a" / "one.tfrecord").write_bytes((tmp_path / "a" / "one.tfrecord").read_bytes()[:-5])
        with pytest.raises(SourceError, match="one.tfrecord: cut or damaged after its first 29 records"):
            ingested(f"tfrecords:{tmp_path}/?/*", tmp_path / "cut", **asked)
        with pytest.raises(SourceError, match="no file is called so"):
            ingested(f"tfrecords:{tmp_path}/none*", tmp_path / "none")
        # our own records are Examples as any other
        _, again = ingested(f"tfrecords:{tmp_path}/records/Split-train/*", tmp_path / "again", eval_fraction=0.5)
        assert len(again.train) + len(again.eval) == len(found.train)

    def test_tfrecords_with_words_for_classes(self, tmp_path, rng):
        def write(name: str, labels: list) -> str:
            with tf.io.TFRecordWriter(str(tmp_path / name)) as writer:
                for label in labels:
                    features = {
                        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[encoded(picture(rng), "PNG")]))
                    }
                    if isinstance(label, str):
                        features["y"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[label.encode()]))
                    else:
                        features["y"] = tf.train.Feature(float_list=tf.train.FloatList(value=[label]))
                    writer.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
            return f"tfrecords:{tmp_path / name}"

        words = ["wasp", "ant", "bee, wild"]
        manifest, found = ingested(write("words", words * 10), tmp_path / "records", label_key="y", eval_fraction=0.3)
        assert manifest["class_names"] == ["ant", "bee, wild", "wasp"]
        for part in (found.train, found.eval):
            rows = [int(name.rpartition("/")[2]) for name in part.names]
            assert [part.class_names[number] for number in part.classes] == [words[row % 3] for row in rows]
        schema = (tmp_path / "records" / "schema.pbtxt").read_text()
        assert "image/class/text" in schema
        assert "image/class/label" not in schema
        # floats without a fraction are numbers
        manifest, found = ingested(write("floats", [1.0, 0.0] * 10), tmp_path / "numbers", label_key="y", eval_fraction=0.3)
        assert [int(name.rpartition("/")[2]) % 2 for name in found.train.names] == (1 - found.train.classes).tolist()
        # records that were made of words are read again
        again = ingested(f"tfrecords:{tmp_path}/records/Split-*/*", tmp_path / "again", eval_fraction=0.3)[1]
        assert again.train.class_names == ("ant", "bee, wild", "wasp")

    @pytest.mark.slow
    def test_tfds(self, tmp_path, data_dir):
        options = {"data_dir": str(data_dir), "images_per_shard": 8}
        manifest, found = ingested("boxes", tmp_path / "records", **options)
        source = load_source("boxes", SourceOptions(data_dir=options["data_dir"]))
        are_the_same(found.train, source.train, (6, 6))
        are_the_same(found.eval, source.eval, (6, 6))
        assert manifest["class_names"] == ["dark", "bright"]
        # of many sizes, without a test split, which --dataset=NAME refuses
        with pytest.raises(SourceError, match="many sizes.*components.data_ingestion"):
            load_source("sizes", SourceOptions(data_dir=options["data_dir"]))
        manifest, found = ingested("sizes", tmp_path / "sizes", **options)
        assert len(found.train) + len(found.eval) == 40
        assert len(manifest["shapes"]) == 4
        with pytest.raises(SourceError, match="TFDS has not prepared it|unknown"):
            ingested("no_such_data_set", tmp_path / "none", **options)
