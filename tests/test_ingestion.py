"""Ingestion by Beam: any source to the same records, whoever does the work; and what it says of bad input."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT, is_one_line, run_doors
from google.protobuf import text_format
from served import encoded, picture
from tensorflow_metadata.proto.v0 import schema_pb2

from components.artifacts import read_made_of
from components.data_ingestion.executor import ingest
from components.kfp_steps import digest_of_examples
from components.settings import IngestionSettings
from sela_tf.config import ConfigError
from sela_tf.data.image_set import SourceError
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.sources import load_source
from sela_tf.data.splits import hold_out

IN_PROCESS = ("--runner=FnApiRunner", "--direct_running_mode=in_memory")
DOOR = "components.data_ingestion.__main__"

# Beam's, on importing and on a pipeline's end
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ImportWarning"),
    pytest.mark.xdist_group("beam"),
]


def ingested(dataset: str, examples: pathlib.Path | str, **changes):
    """Ingests in this process, and loads the records."""
    settings = IngestionSettings(dataset=dataset, examples=str(examples), **{"beam_pipeline_args": IN_PROCESS, **changes})
    manifest = ingest(settings)
    return manifest, load_source(f"records:{settings.examples}")


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


def files_of(directory: pathlib.Path) -> dict[str, bytes]:
    """All but what says when the input was read."""
    paths = [path for path in directory.rglob("*") if path.is_file() and path.name != "made_of.json"]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Sixty images of two classes, of many sizes and modes, and what is to be left out."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("folder") / "images"
    for i in range(60):
        directory = root / ("cats" if i % 3 else "dogs") / f"part-{i % 4}"
        directory.mkdir(parents=True, exist_ok=True)
        kind, mode = [("PNG", "RGB"), ("JPEG", "RGB"), ("PNG", "L"), ("JPEG", "CMYK"), ("BMP", "RGB")][i % 5]
        (directory / f"ü {i}.{kind.lower()}").write_bytes(encoded(picture(rng, mode, (12 + i % 5, 10)), kind))
    for directory in root.glob("*/*"):  # classes are the names of the nearest directories
        for path in directory.iterdir():
            path.rename(directory.parent / path.name)
        directory.rmdir()
    (root / "notes.txt").write_text("no image")
    (root / "cats" / "new.webp").write_bytes(b"RIFF\x00\x00\x00\x00WEBPVP8 ")
    return root


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
        assert rejected == [{"name": "cats/new.webp", "reason": "webp: convert it to jpeg, png, gif or bmp"}]

    @pytest.mark.slow
    def test_two_workers_one_and_a_copy_give_the_same_bytes(self, folder, tmp_path):
        """Real worker processes."""
        for count in (1, 2):
            workers = ("--runner=FnApiRunner", "--direct_running_mode=multi_processing", f"--direct_num_workers={count}")
            ingested(f"folder:{folder}", tmp_path / str(count), images_per_shard=10, beam_pipeline_args=workers)
        one, two = files_of(tmp_path / "1"), files_of(tmp_path / "2")
        assert len(one) == 4 + 6 + 1
        assert one == two
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
        """npz, idx and digits go one way."""
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
            match=r"record 0 has 0 values of bytes_list under 'image/encoded', not one \(it has img, y\): say where it is with --image_key",
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

    def test_tfds(self, tmp_path):
        script = tmp_path / "prepare.py"
        script.write_text(_BUILDER)
        subprocess.run([sys.executable, script, tmp_path / "tfds"], check=True, capture_output=True, cwd=tmp_path)
        options = {"data_dir": str(tmp_path / "tfds"), "images_per_shard": 8}
        manifest, found = ingested("boxes", tmp_path / "records", **options)
        source = load_source("boxes", data_dir=options["data_dir"])
        are_the_same(found.train, source.train, (6, 6))
        are_the_same(found.eval, source.eval, (6, 6))
        assert manifest["class_names"] == ["dark", "bright"]
        # of many sizes, without a test split, which --dataset=NAME refuses
        with pytest.raises(SourceError, match="many sizes.*components.data_ingestion"):
            load_source("sizes", data_dir=options["data_dir"])
        manifest, found = ingested("sizes", tmp_path / "sizes", **options)
        assert len(found.train) + len(found.eval) == 40
        assert len(manifest["shapes"]) == 4
        with pytest.raises(SourceError, match="TFDS has not prepared it|unknown"):
            ingested("no_such_data_set", tmp_path / "none", **options)


_BUILDER = """
import sys
import numpy as np, tensorflow_datasets as tfds

class Boxes(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")
    sizes = (6,)
    splits = {"train": 30, "test": 10}

    def _info(self):
        features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(names=["dark", "bright"])}
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, manager):
        return {name: self._generate_examples(count) for name, count in self.splits.items()}

    def _generate_examples(self, count):
        random = np.random.default_rng(count)
        for i in range(count):
            side = self.sizes[i % len(self.sizes)]
            image = random.integers(0, 128, (side, side, 3), dtype=np.uint8) + np.uint8(120 * (i % 2))
            yield i, {"image": image, "label": i % 2}

class Sizes(Boxes):
    VERSION = tfds.core.Version("1.0.0")
    sizes = (6, 7, 8, 9)
    splits = {"train": 40}

for builder in (Boxes, Sizes):
    builder(data_dir=sys.argv[1]).download_and_prepare()
"""


class TestArtifact:
    def test_what_is_unchanged_is_not_done_again(self, tmp_path, rng, capsys):
        root = tmp_path / "images"
        root.mkdir()
        for i in range(20):
            (root / f"{i}.png").write_bytes(encoded(picture(rng), "PNG"))
        asked = {"dataset": f"folder:{root}", "examples": tmp_path / "records"}
        first, _ = ingested(**asked)
        times = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("*")}
        assert "unchanged since" not in capsys.readouterr().out
        assert ingested(**asked)[0] == first
        assert "unchanged since" in capsys.readouterr().out
        assert {path: path.stat().st_mtime_ns for path in (tmp_path / "records").rglob("*")} == times
        # an image more
        (root / "new.png").write_bytes(encoded(picture(rng), "PNG"))
        second, found = ingested(**asked)
        assert len(found.train) + len(found.eval) == 21
        # one changed under its name
        (root / "new.png").write_bytes(encoded(picture(rng), "PNG"))
        assert ingested(**asked)[0]["digest"] != second["digest"]
        # other settings, fewer shards than before
        ingested(**asked, images_per_shard=5)
        assert len(list((tmp_path / "records" / "Split-train").iterdir())) > 1
        ingested(**asked, images_per_shard=500)
        assert len(list((tmp_path / "records" / "Split-train").iterdir())) == 1
        # and one whose output is damaged
        (shard,) = (tmp_path / "records" / "Split-train").iterdir()
        shard.unlink()
        ingested(**asked, images_per_shard=500)
        assert shard.exists()

    def test_images_that_were_only_touched_are_the_same_images(self, tmp_path, rng):
        """So that nobody trains on them again."""
        root = tmp_path / "images"
        root.mkdir()
        for i in range(12):
            (root / f"{i:02d}.png").write_bytes(encoded(picture(rng), "PNG"))
        ingested(f"folder:{root}", tmp_path / "records")
        before, digest = read_made_of(str(tmp_path / "records")), digest_of_examples(str(tmp_path / "records"))
        (root / "03.png").touch()
        ingested(f"folder:{root}", tmp_path / "records")
        assert read_made_of(str(tmp_path / "records"))["fingerprint"] != before["fingerprint"]
        assert digest_of_examples(str(tmp_path / "records")) == digest
        (root / "new.png").write_bytes(encoded(picture(rng), "PNG"))
        ingested(f"folder:{root}", tmp_path / "records")
        assert digest_of_examples(str(tmp_path / "records")) != digest

    def test_schema(self, tmp_path):
        ingested("digits", tmp_path / "records")
        schema = text_format.Parse((tmp_path / "records" / "schema.pbtxt").read_text(), schema_pb2.Schema())
        features = {feature.name: feature for feature in schema.feature}
        assert features["image/encoded"].HasField("image_domain")
        assert features["image/class/label"].int_domain.max == 9
        (path,) = (tmp_path / "records" / "Split-eval").iterdir()
        for serialized in tf.data.TFRecordDataset(str(path), compression_type="GZIP").as_numpy_iterator():
            found = tf.train.Example.FromString(serialized).features.feature
            assert set(found) == set(features)
            for name, value in found.items():
                assert value.HasField("int64_list") == (features[name].type == schema_pb2.INT)

    def test_urls(self, folder):
        """Everything on TensorFlow's file system in memory, which stands for gs:// and s3://."""
        for path in folder.rglob("*"):
            if path.is_dir():
                tf.io.gfile.makedirs(f"ram://images/{path.relative_to(folder)}")
        for path in folder.rglob("*"):
            if path.is_file():
                with tf.io.gfile.GFile(f"ram://images/{path.relative_to(folder)}", "wb") as file:
                    file.write(path.read_bytes())
        _, found = ingested("folder:ram://images", "ram://records", images_per_shard=20)
        assert len(found.train) + len(found.eval) == 60
        assert found.train.class_names == ("cats", "dogs")

    def test_nothing_is_lost_when_it_fails(self, tmp_path, rng):
        """What was ingested before stays until all of the new is there; the input stays in any case."""
        root = tmp_path / "images"
        root.mkdir()
        for i in range(12):
            (root / f"{i:02d}.png").write_bytes(encoded(picture(rng), "PNG"))
        ingested(f"folder:{root}", tmp_path / "records")
        before = files_of(tmp_path / "records")
        (root / "cut.png").write_bytes((root / "05.png").read_bytes()[:-20])
        with pytest.raises(SourceError, match="cut.png"):
            ingested(f"folder:{root}", tmp_path / "records")
        with pytest.raises(ConfigError, match="--beam_pipeline_args=--runner=Nonsense: "):
            ingested(f"folder:{root}", tmp_path / "records", beam_pipeline_args=("--runner=Nonsense",))
        with pytest.raises(
            ConfigError, match="--beam_pipeline_args=--direct_num_workers=abc: argument --direct_num_workers: invalid"
        ):
            ingested(f"folder:{root}", tmp_path / "records", beam_pipeline_args=("--direct_num_workers=abc",))
        with pytest.raises(ConfigError, match="holds what is to be ingested"):
            ingested(f"tfrecords:{tmp_path}/records/Split-train/*", tmp_path / "records")
        with pytest.raises(ConfigError, match=f"holds examples of --dataset=folder:{root}: name another directory"):
            ingested("digits", tmp_path / "records")
        assert files_of(tmp_path / "records") == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "records"]

    def test_a_directory_that_holds_something_else(self, tmp_path):
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("years of work")
        with pytest.raises(ConfigError, match="holds other files .thesis.txt."):
            ingested("digits", tmp_path / "mine")
        assert (tmp_path / "mine" / "thesis.txt").exists()


class TestBadInput:
    def test_a_damaged_image_is_named_and_can_be_left_out(self, tmp_path, rng):
        root = tmp_path / "images"
        root.mkdir()
        for i in range(12):
            (root / f"{i:02d}.png").write_bytes(encoded(picture(rng), "PNG"))
        (root / "05.png").write_bytes((root / "05.png").read_bytes()[:-20])
        with pytest.raises(
            SourceError, match=r"1 of 12 images cannot be read: 05.png \(.*Leave|leave them out with --skip_bad_images"
        ):
            ingested(f"folder:{root}", tmp_path / "records")
        assert not (tmp_path / "records" / "manifest.json").exists()
        manifest, found = ingested(f"folder:{root}", tmp_path / "records", skip_bad_images=True)
        assert manifest["num_rejected"] == 1
        assert len(found.train) + len(found.eval) == 11
        assert [each["name"] for each in json.loads((tmp_path / "records" / "rejected.json").read_text())] == ["05.png"]

    def test_a_link_to_nothing_is_a_damaged_image(self, tmp_path, rng):
        for i in range(8):
            (tmp_path / f"{i}.png").write_bytes(encoded(picture(rng), "PNG"))
        (tmp_path / "8.png").symlink_to(tmp_path / "gone.png")
        with pytest.raises(SourceError, match=r"1 of 9 images cannot be read: 8.png \(cannot be read: No such file or directory\)"):
            load_source(f"folder:{tmp_path}")

    def test_names_that_two_images_would_have(self, tmp_path, rng):
        for name in ("first/eval_dataset", "first/other", "second"):
            (tmp_path / name).mkdir(parents=True)
            for i in range(4):
                (tmp_path / name / f"{i}.png").write_bytes(encoded(picture(rng), "PNG"))
        with pytest.raises(SourceError, match="4 images would have the name of another, such as 'eval_dataset/0.png'"):
            ingested(f"folder:{tmp_path}/first", tmp_path / "records", eval_dataset=f"folder:{tmp_path}/second")

    def test_tfrecords_that_will_not_do(self, tmp_path, rng, capsys):
        file = encoded(picture(rng), "PNG")

        def write(name: str, *examples: dict[str, tf.train.Feature] | bytes, options: str = "") -> str:
            with tf.io.TFRecordWriter(str(tmp_path / name), options) as writer:
                for each in examples:
                    whole = (
                        each
                        if isinstance(each, bytes)
                        else tf.train.Example(features=tf.train.Features(feature=each)).SerializeToString()
                    )
                    writer.write(whole)
            return f"tfrecords:{tmp_path / name}"

        def example(label: object = None, files: int = 1, text: str = "") -> dict[str, tf.train.Feature]:
            features = {"image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[file] * files))}
            if isinstance(label, int):
                features["image/class/label"] = tf.train.Feature(int64_list=tf.train.Int64List(value=[label]))
            elif label is not None:
                features["image/class/label"] = tf.train.Feature(float_list=tf.train.FloatList(value=[label]))
            if text:
                features["image/class/text"] = tf.train.Feature(bytes_list=tf.train.BytesList(value=[text.encode()]))
            return features

        for dataset, changes, message in (
            (write("raw", b"\xff\xff no Example"), {}, "raw: record 0 is no tf.train.Example"),
            (write("packed", example(), options="ZLIB"), {}, "or packed otherwise than by gzip"),
            (write("two", example(files=2)), {}, "2 values of bytes_list under 'image/encoded', not one"),
            (write("float", example(1.5)), {}, "0 values of int64_list under 'image/class/label'"),
            (write("unnamed", example(1)), {"label_key": "y"}, "0 values of int64_list under 'y'.*--label_key"),
            (write("empty"), {}, "no image in it"),
        ):
            with pytest.raises(SourceError, match=message):
                ingested(dataset, tmp_path / "records", **changes)
        half = write("half", *(example(i % 2 if i < 20 else None) for i in range(40)))
        _, found = ingested(half, tmp_path / "half-records", eval_fraction=0.3)
        assert found.train.classes is None
        assert "images have no class, so that classes are not used" in capsys.readouterr().out
        named = write("named", *(example(i % 2, text=("cat", "dog")[i % 2]) for i in range(40)))
        manifest, found = ingested(named, tmp_path / "named-records", eval_fraction=0.3)
        assert manifest["class_names"] == ["cat", "dog"]
        assert "image/class/text" in (tmp_path / "named-records" / "schema.pbtxt").read_text()
        assert set(found.train.classes) == {0, 1}

    def test_a_split_that_would_be_empty(self, tmp_path, rng):
        root = tmp_path / "images"
        root.mkdir()
        for i in range(3):
            (root / f"{i:02d}.png").write_bytes(encoded(picture(rng), "PNG"))
        with pytest.raises(SourceError, match="--eval_fraction=0.001 leaves 3 of 3"):
            ingested(f"folder:{root}", tmp_path / "records", eval_fraction=0.001)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"dataset": ""}, "--dataset is missing"),
            ({"examples": ""}, "--examples is missing"),
            ({"dataset": "records:/x"}, "need not be ingested"),
            ({"dataset": "features:x.npy"}, "need not be ingested"),
            ({"dataset": "folder:/a/b", "examples": "/a/b/records"}, "lies in the folder that is ingested"),
            ({"image_key": "x"}, "--image_key and --label_key are for tfrecords:GLOB"),
            ({"images_per_shard": 0}, "--images_per_shard must be at least 1"),
            ({"eval_fraction": 1.0}, "--eval_fraction must be above 0 and below 1"),
        ],
    )
    def test_settings(self, changes, message):
        with pytest.raises(ConfigError, match=message):
            IngestionSettings(**{"dataset": "digits", "examples": "none", **changes})

    def test_the_door(self, tmp_path):
        arguments = [f"--examples={tmp_path / 'records'}", f"--beam_pipeline_args={','.join(IN_PROCESS)}"]
        good, unknown, missing, without = run_doors(
            [
                ["--dataset=digits", *arguments],
                ["--dataset=digits", "--shards=2", *arguments],
                [f"--dataset=folder:{tmp_path}/none", *arguments],
                ["--dataset=digits"],
            ],
            DOOR,
        )
        assert good.returncode == 0, good.stderr
        assert "0 rejected. Train on them with --dataset=records:" in good.stdout
        door = "components.data_ingestion"
        is_one_line(unknown, "Unknown command line flag 'shards'", door=door)
        is_one_line(missing, f"{tmp_path}/none", door=door)
        is_one_line(without, "--examples is missing", door=door)

    def test_without_beam(self, tmp_path):
        """The extra is named before any work is done."""
        code = (
            "import sys; sys.modules['apache_beam'] = None\n"
            f"from components.data_ingestion.__main__ import main\n"
            f"sys.exit(main(['x', '--dataset=digits', '--examples={tmp_path}/records']))"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
        is_one_line(done, "pip install 'sela-tf[beam]'", door="components.data_ingestion")
        assert not (tmp_path / "records").exists()
