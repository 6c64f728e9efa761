"""The artifact of ingestion: what it leaves behind, keeps and refuses."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from fixtures import ROOT, is_one_line, run_here
from google.protobuf import text_format
from ingested import IN_PROCESS, MARKS, files_of, ingested, make_folder
from served import encoded, picture
from tensorflow_metadata.proto.v0 import schema_pb2

from components.artifacts import read_made_of
from components.kfp_steps import digest_of_examples
from components.settings import IngestionSettings
from sela_tf.data.errors import SourceError
from sela_tf.data.sources import load_source
from sela_tf.settings.fields import ConfigError

pytestmark = MARKS
DOOR = "components.data_ingestion.__main__"


def twelve_pictures(directory: pathlib.Path, rng: np.random.Generator) -> pathlib.Path:
    """A folder of 00.png to 11.png."""
    root = directory / "images"
    root.mkdir()
    for i in range(12):
        (root / f"{i:02d}.png").write_bytes(encoded(picture(rng), "PNG"))
    return root


class TestArtifact:
    @pytest.mark.slow
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
        root = twelve_pictures(tmp_path, rng)
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

    def test_urls(self, tmp_path):
        """Everything on TensorFlow's file system in memory, which stands for gs:// and s3://."""
        folder = make_folder(tmp_path / "images")
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
        """The records of before stay until all of the new are there; the input stays in any case."""
        root = twelve_pictures(tmp_path, rng)
        ingested(f"folder:{root}", tmp_path / "records")
        before = files_of(tmp_path / "records")
        (root / "cut.png").write_bytes((root / "05.png").read_bytes()[:-20])
        with pytest.raises(SourceError, match="cut.png"):
            ingested(f"folder:{root}", tmp_path / "records")
        with pytest.raises(ConfigError, match="`beam_pipeline_args=--runner=Nonsense`: "):
            ingested(f"folder:{root}", tmp_path / "records", beam_pipeline_args=("--runner=Nonsense",))
        with pytest.raises(
            ConfigError, match="`beam_pipeline_args=--direct_num_workers=abc`: argument --direct_num_workers: invalid"
        ):
            ingested(f"folder:{root}", tmp_path / "records", beam_pipeline_args=("--direct_num_workers=abc",))
        with pytest.raises(ConfigError, match="holds what is to be ingested"):
            ingested(f"tfrecords:{tmp_path}/records/Split-train/*", tmp_path / "records")
        with pytest.raises(ConfigError, match=f"holds examples of `dataset=folder:{root}`: name another directory"):
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
        root = twelve_pictures(tmp_path, rng)
        (root / "05.png").write_bytes((root / "05.png").read_bytes()[:-20])
        with pytest.raises(
            SourceError,
            match=r"1 of 12 images cannot be read, `max_rejected=0`: 05.png \(.*leave them out with `max_rejected=0.084`",
        ):
            ingested(f"folder:{root}", tmp_path / "records")
        assert not (tmp_path / "records" / "manifest.json").exists()
        manifest, found = ingested(f"folder:{root}", tmp_path / "records", max_rejected=1.0)
        assert manifest["num_rejected"] == 1
        assert len(found.train) + len(found.eval) == 11
        assert [each["name"] for each in json.loads((tmp_path / "records" / "rejected.json").read_text())] == ["05.png"]

    def test_a_link_to_nothing_is_a_damaged_image(self, tmp_path, rng):
        for i in range(8):
            (tmp_path / f"{i}.png").write_bytes(encoded(picture(rng), "PNG"))
        (tmp_path / "8.png").symlink_to(tmp_path / "gone.png")
        with pytest.raises(
            SourceError,
            match=r"1 of 9 images cannot be read, `max_rejected=0`: 8.png \(cannot be read: No such file or directory\)",
        ):
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
            (write("two", example(files=2)), {}, "2 values under 'image/encoded', not one"),
            (
                write("float", example(1.5)),
                {},
                "record 0 has the class 1.5 under 'image/class/label', a float_list: classes are whole",
            ),
            (write("unnamed", example(1)), {"label_key": "y"}, "0 values under 'y'.*`label_key`"),
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
        with pytest.raises(SourceError, match="`eval_fraction=0.001` leaves 3 of 3"):
            ingested(f"folder:{root}", tmp_path / "records", eval_fraction=0.001)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"dataset": ""}, "`dataset` is missing"),
            ({"examples": ""}, "`examples` is missing"),
            ({"dataset": "records:/x"}, "need not be ingested"),
            ({"dataset": "features:x.npy"}, "need not be ingested"),
            ({"dataset": "folder:/a/b", "examples": "/a/b/records"}, "lies in the folder that is ingested"),
            ({"image_key": "x"}, "`image_key` and `label_key` are for tfrecords:GLOB"),
            ({"images_per_shard": 0}, "images_per_shard.* must be at least 1"),
            ({"eval_fraction": 1.0}, "eval_fraction.* must be above 0 and below 1"),
        ],
    )
    def test_settings(self, changes, message):
        with pytest.raises(ConfigError, match=message):
            IngestionSettings(**{"dataset": "digits", "examples": "none", **changes})

    def test_the_door(self, tmp_path):
        arguments = [f"--examples={tmp_path / 'records'}", f"--beam_pipeline_args={','.join(IN_PROCESS)}"]
        good, unknown, missing, without = run_here(
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
        is_one_line(missing, f"{tmp_path}/none", door=door, status=3)
        is_one_line(without, "--examples is missing", door=door)

    def test_without_beam(self, tmp_path, monkeypatch):
        """Threads of this process need none; where options of Beam are given, the extra is named before any work is done."""
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "apache_beam" else find_spec(name))
        asks = f"--beam_pipeline_args={','.join(IN_PROCESS)}"
        asked, plain = run_here(
            [["--dataset=digits", f"--examples={tmp_path}/{name}", *more] for name, more in (("asked", [asks]), ("plain", []))],
            DOOR,
        )
        is_one_line(asked, "pip install 'sela-tf[beam]'", door="components.data_ingestion")
        assert [path.name for path in tmp_path.iterdir()] == ["plain"]
        assert plain.returncode == 0, plain.stderr
        assert re.search(r"writing \d+ shards here, on \d+ thread", plain.stdout)

    @pytest.mark.slow
    def test_without_beam_nothing_imports_it(self, tmp_path):
        code = (
            "import sys; sys.modules['apache_beam'] = None\n"
            f"from components.data_ingestion.__main__ import main\n"
            f"sys.exit(main(['x', '--dataset=digits', '--examples={tmp_path}/records', *sys.argv[1:]]))"
        )
        for arguments, status in ([f"--beam_pipeline_args={','.join(IN_PROCESS)}"], 2), ([], 0):
            done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=ROOT, check=False)
            assert done.returncode == status, done.stderr
            if status:
                is_one_line(done, "pip install 'sela-tf[beam]'", door="components.data_ingestion")
            assert (tmp_path / "records").exists() == (status == 0)
