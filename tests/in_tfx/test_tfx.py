"""The components in TFX: real pipelines by its LocalDagRunner, with components of its own before and behind ours."""

from __future__ import annotations

import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from fixtures import ROOT
from ml_metadata import metadata_store
from ml_metadata.proto import metadata_store_pb2 as mlmd
from tfx import v1 as tfx

from components.data_ingestion.component import DataIngestion
from components.linear_probe.component import LinearProbe
from components.pipeline_tfx import last_run
from components.pipeline_tfx import main as door
from components.self_labelling.component import SelfLabelling
from examples import tfx_project
from sela_tf.data.records import read_manifest
from sela_tf.data.sources import load_source

SMALL = [
    "--dataset=digits", "--eval_fraction=0.25", "--backbone=resnet8", "--num_heads=2", "--num_clusters=32", "--batch_size=64", "--epochs=2",
    "--noreport", "--evaluate=none", "--monitor_examples=0", "--monitor_epochs=1", "--min_knn=0.5",
]  # fmt: skip


def run_pipeline(root: pathlib.Path, *arguments: str) -> int:
    return door(["pipeline_tfx", *SMALL, *arguments, f"--root={root}"])


def store_of(root: pathlib.Path) -> metadata_store.MetadataStore:
    connection = mlmd.ConnectionConfig()
    connection.sqlite.filename_uri = f"{root}/metadata.sqlite"
    return metadata_store.MetadataStore(connection)


def run(root: pathlib.Path, *components: object) -> None:
    """Runs a pipeline of some components in `root`."""
    metadata = tfx.orchestration.metadata.sqlite_metadata_connection_config(f"{root}/metadata.sqlite")
    tfx.orchestration.LocalDagRunner().run(tfx.dsl.Pipeline("test", f"{root}/artifacts", metadata, components, enable_cache=True))


def only(root: pathlib.Path, type_name: str) -> mlmd.Artifact:
    (artifact,) = store_of(root).get_artifacts_by_type(type_name)
    return artifact


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> pathlib.Path:
    """A pipeline on the digits that has run."""
    directory = tmp_path_factory.mktemp("tfx")
    assert run_pipeline(directory) == 0
    return directory


def importer(root: pathlib.Path, kind: type, name: str) -> tfx.dsl.Importer:
    """An artifact of the pipeline that has run, for another pipeline."""
    artifact = only(root, kind.TYPE_NAME)
    properties = {"split_names": '["train", "eval"]'} if name == "examples" else {}
    return tfx.dsl.Importer(source_uri=artifact.uri, artifact_type=kind, properties=properties).with_id(name)


class TestPipeline:
    def test_blessed_model_is_pushed(self, root):
        assert [step.name for step in last_run(str(root))] == ["DataIngestion", "SelfLabelling", "LinearProbe", "Pusher"]
        assert not any(step.is_cached for step in last_run(str(root)))
        (pushed,) = (root / "serving").iterdir()
        clusters = tf.saved_model.load(str(pushed)).signatures["serving_default"]
        assert clusters is not None
        model = pathlib.Path(only(root, "Model").uri)
        assert (pushed / "saved_model.pb").read_bytes() == (model / "Format-Serving" / "saved_model.pb").read_bytes()
        # A training that is finished leaves no second copy.
        assert not any((root / "scratch").iterdir())

    def test_what_is_not_blessed_is_not_pushed(self, root, tmp_path):
        examples = importer(root, tfx.types.standard_artifacts.Examples, "examples")
        model = importer(root, tfx.types.standard_artifacts.Model, "model")
        probe = LinearProbe(
            examples=examples.outputs["result"], model=model.outputs["result"], settings="--min_knn=1 --stages=embedding"
        )
        place = tfx.proto.PushDestination(filesystem=tfx.proto.PushDestination.Filesystem(base_directory=f"{tmp_path}/serving"))
        pusher = tfx.components.Pusher(
            model=model.outputs["result"], model_blessing=probe.outputs["blessing"], push_destination=place
        )
        run(tmp_path, examples, model, probe, pusher)
        assert not (tmp_path / "serving").exists()
        assert only(tmp_path, "ModelBlessing").custom_properties["blessed"].int_value == 0

    def test_the_command_says_so(self, root, capsys):
        """With another threshold, the training is served from the cache."""
        assert run_pipeline(root, "--min_knn=1") == 0
        said = capsys.readouterr().out
        assert "SelfLabelling: unchanged, from the cache" in said
        assert "The model is not blessed, and not pushed: evaluation.md there says why" in said
        assert len(list((root / "serving").iterdir())) == 1

    def test_baseline_is_an_input(self, root, tmp_path):
        examples = importer(root, tfx.types.standard_artifacts.Examples, "examples")
        model = importer(root, tfx.types.standard_artifacts.Model, "model")
        channel = model.outputs["result"]
        probe = LinearProbe(examples=examples.outputs["result"], model=channel, baseline=channel, settings="--stages=embedding")
        run(tmp_path, examples, model, probe)
        # Without a threshold, it is the baseline that lets the model pass: it is no worse than itself.
        assert only(tmp_path, "ModelBlessing").custom_properties["blessed"].int_value == 1

    def test_second_run_is_served_from_the_cache(self, root, capsys):
        before = {path for path in root.rglob("*") if path.name not in ("metadata.sqlite",) and ".system" not in path.parts}
        assert run_pipeline(root) == 0
        assert all(step.is_cached for step in last_run(str(root)))
        assert capsys.readouterr().out.count("unchanged, from the cache") == 4
        assert {path for path in root.rglob("*") if path.name != "metadata.sqlite" and ".system" not in path.parts} == before

    def test_lineage(self, root):
        """The store says which examples the labels came from."""
        store, labels = store_of(root), only(root, "SelaLabels")
        events = store.get_events_by_artifact_ids([labels.id])
        # A run that was served from the cache has the same output.
        made = min((event for event in events if event.type == mlmd.Event.OUTPUT), key=lambda event: event.execution_id)
        inputs = [e.artifact_id for e in store.get_events_by_execution_ids([made.execution_id]) if e.type == mlmd.Event.INPUT]
        (examples,) = store.get_artifacts_by_id(inputs)
        assert examples.uri == only(root, "Examples").uri
        assert examples.custom_properties["digest"].string_value == read_manifest(examples.uri, name="examples")["digest"]
        labelled = set(pq.read_table(f"{labels.uri}/labels.parquet")["example_id"].to_pylist())
        index = pq.read_table(f"{examples.uri}/index.parquet").to_pylist()
        assert labelled == {row["example_id"] for row in index if row["split"] == "train"}

    def test_labels_are_those_of_the_kfp_pipeline(self, root, tmp_path):
        command = [sys.executable, "-m", "components.pipeline", *SMALL, f"--root={tmp_path}/kfp"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (of_kfp,) = (tmp_path / "kfp").rglob("labels.parquet")
        columns = ["example_id", "source_name", "head", "cluster", "probability", "margin"]
        ours, theirs = (pq.read_table(file, columns=columns) for file in (f"{only(root, 'SelaLabels').uri}/labels.parquet", of_kfp))
        assert ours.equals(theirs)

    def test_killed_run_continues(self, root, tmp_path):
        """The labels of a run that was killed while it trained are those of the unbroken one."""
        command = [sys.executable, "-m", "components.pipeline_tfx", *SMALL, f"--root={tmp_path}/run"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            # There is one of step 0, too.
            while process.poll() is None and not any(
                int(path.name[5:13]) for path in (tmp_path / "run").glob("scratch/*/checkpoints/step-*")
            ):
                time.sleep(0.1)
            process.send_signal(signal.SIGKILL)
        assert [step.name for step in last_run(f"{tmp_path}/run")] == ["DataIngestion"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "; continues at step " in done.stdout
        files = [f"{only(each, 'SelaLabels').uri}/labels.parquet" for each in (root, tmp_path / "run")]
        assert pq.read_table(files[0]).equals(pq.read_table(files[1]))


class TestFaults:
    def test_failing_step_ends_the_pipeline_with_its_cause(self, tmp_path, capsys):
        folder = tmp_path / "images" / "one"
        folder.mkdir(parents=True)
        for i in range(4):
            (folder / f"{i}.png").write_bytes(tf.io.encode_png(np.full((8, 8, 3), i, np.uint8)).numpy())
        (folder / "4.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
        assert run_pipeline(tmp_path / "root", f"--dataset=folder:{tmp_path}/images") == 3
        assert "one/4.png" in capsys.readouterr().err
        (execution,) = store_of(tmp_path / "root").get_executions()
        assert execution.last_known_state == mlmd.Execution.FAILED

    def test_images_that_changed_are_ingested_again(self, tmp_path):
        folder = tmp_path / "images"
        folder.mkdir()
        for i in range(12):
            (folder / f"{i}.png").write_bytes(tf.io.encode_png(np.full((8, 8, 3), i, np.uint8)).numpy())
        for number in (12, 13):
            run(tmp_path, DataIngestion(settings=f"--dataset=folder:{folder} --eval_fraction=0.3"))
            newest = max(store_of(tmp_path).get_artifacts_by_type("Examples"), key=lambda artifact: artifact.id)
            assert sum(newest.custom_properties[f"num_{split}"].int_value for split in ("train", "eval")) == number
            (folder / "12.png").write_bytes(tf.io.encode_png(np.full((8, 8, 3), 12, np.uint8)).numpy())

    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (lambda: DataIngestion(settings="--dataset=folder:/nowhere"), "/nowhere"),
            (lambda: DataIngestion(settings="--dataset=digits --nonsense=1"), "nonsense"),
            (lambda: DataIngestion(), "dataset"),
            (lambda: SelfLabelling(examples=None, settings="--epochs=-1"), "epochs"),
            (lambda: LinearProbe(examples=None, model=None, settings="--min_knn=7"), "min_knn"),
        ],
    )
    def test_mistakes_are_told_before_anything_runs(self, make, said):
        with pytest.raises(Exception, match=said):
            make()


@pytest.fixture(scope="module")
def foreign(tmp_path_factory) -> pathlib.Path:
    """The digits as another program's TFRecord files."""
    directory, digits = tmp_path_factory.mktemp("foreign"), load_source("digits").train
    for split, chosen in (("train", slice(0, 1400)), ("eval", slice(1400, None))):
        (directory / split).mkdir()
        with tf.io.TFRecordWriter(f"{directory}/{split}/part-0.tfrecord") as writer:
            for image, number in zip(digits.images[chosen], digits.classes[chosen], strict=True):
                feature = {
                    "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[tf.io.encode_png(image).numpy()])),
                    "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[number])),
                }
                writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    return directory


class TestTrustInBothDirections:
    def test_project_gains_labels_in_ten_lines(self, foreign, tmp_path):
        """Examples of ImportExampleGen feed our ingestion, whose images are those of the files."""
        text = pathlib.Path(tfx_project.__file__).read_text()
        added = re.findall("# added: from here\n(.*?)# added: to here", text, re.DOTALL)
        assert sum(bool(line.strip()) for part in added for line in part.splitlines()) <= 10
        tfx.orchestration.LocalDagRunner().run(tfx_project.create_pipeline(str(foreign), str(tmp_path)))
        (ours,) = (a for a in store_of(tmp_path).get_artifacts_by_type("Examples") if "DataIngestion" in a.uri)
        found, digits = load_source(f"records:{ours.uri}"), load_source("digits").train
        for images, expected in ((found.train, digits.images[:1400]), (found.eval, digits.images[1400:])):
            assert sorted(image.tobytes() for image in images.images) == sorted(image.tobytes() for image in expected)
        labels = pq.read_table(f"{only(tmp_path, 'SelaLabels').uri}/labels.parquet").to_pandas()
        sizes = labels.groupby("head")["cluster"].value_counts()
        assert len(labels) == 2 * 1400
        assert sizes.between(1400 // 32, -(-1400 // 32)).all()

    def test_our_examples_feed_tfxs_own_components(self, root, tmp_path):
        examples = importer(root, tfx.types.standard_artifacts.Examples, "examples")
        statistics = tfx.components.StatisticsGen(examples=examples.outputs["result"])
        schema = tfx.components.SchemaGen(statistics=statistics.outputs["statistics"])
        validator = tfx.components.ExampleValidator(statistics=statistics.outputs["statistics"], schema=schema.outputs["schema"])
        run(tmp_path, examples, statistics, schema, validator)
        import tensorflow_data_validation as tfdv
        from tensorflow_metadata.proto.v0 import anomalies_pb2

        counts = {}
        place = only(tmp_path, "ExampleStatistics").uri
        for split in ("train", "eval"):
            found = tfdv.load_stats_binary(f"{place}/Split-{split}/FeatureStats.pb")
            counts[split] = found.datasets[0].num_examples
            anomalies = anomalies_pb2.Anomalies()
            anomalies.ParseFromString(
                pathlib.Path(f"{only(tmp_path, 'ExampleAnomalies').uri}/Split-{split}/SchemaDiff.pb").read_bytes()
            )
            assert not anomalies.anomaly_info
        manifest = read_manifest(only(root, "Examples").uri, name="examples")
        assert counts == {name: split["num_examples"] for name, split in manifest["splits"].items()}

    def test_bulk_inferrer_labels_images(self, root, tmp_path):
        """TFX's BulkInferrer gives each image the cluster that the exported model gives it."""
        from tensorflow_serving.apis import prediction_log_pb2

        examples = importer(root, tfx.types.standard_artifacts.Examples, "examples")
        model = importer(root, tfx.types.standard_artifacts.Model, "model")
        inferrer = tfx.components.BulkInferrer(
            examples=examples.outputs["result"], model=model.outputs["result"],
            data_spec=tfx.proto.DataSpec(example_splits=["eval"]), model_spec=tfx.proto.ModelSpec(model_signature_name=["examples"]),
        )  # fmt: skip
        run(tmp_path, examples, model, inferrer)
        signature = tf.saved_model.load(f"{only(root, 'Model').uri}/Format-Serving").signatures["examples"]
        files = sorted(map(str, pathlib.Path(only(tmp_path, "InferenceResult").uri).rglob("*.gz")))
        count = 0
        for raw in tf.data.TFRecordDataset(files, compression_type="GZIP").as_numpy_iterator():
            log = prediction_log_pb2.PredictionLog.FromString(raw).predict_log
            (serialized,) = tf.make_ndarray(log.request.inputs["examples"]).reshape(-1)
            expected = signature(examples=tf.constant([serialized]))["cluster"].numpy()
            np.testing.assert_array_equal(tf.make_ndarray(log.response.outputs["cluster"]).reshape(expected.shape), expected)
            count += 1
        assert count == read_manifest(only(root, "Examples").uri, name="examples")["splits"]["eval"]["num_examples"]
