"""The pipeline on Kubeflow Pipelines: really run here, and compiled for a cluster."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys

import pytest
import yaml
from absl import flags as absl_flags
from doc_blocks import make_directory, run_make
from fixtures import ROOT, SMALL, run_here
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2
from processes import Tree
from served import encoded, picture

from components.linear_probe.__main__ import main as probe_command
from components.self_labelling.__main__ import main as train_command
from sela_tf.cli import flags
from sela_tf.settings.training import SelaConfig
from sela_tf.tasks.lost import WorkerLostError

TRAINING = [flag for flag in SMALL if not flag.startswith("--dataset")]


def run_pipeline(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "components.pipeline", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict:
    """The compiled pipeline that a cluster would get."""
    file = tmp_path_factory.mktemp("compiled") / "pipeline.yaml"
    command = [
        f"--flagfile={ROOT}/configs/cifar10_128x10.cfg", "--dataset=folder:/data/with space", "--min_knn=0.7", "--knn=20", f"--compile={file}",
        "--image=registry/sela-tf:1", "--cpu=8", "--memory=32G", "--accelerator=NVIDIA_L4", "--retries=3", "--beam_pipeline_args=--runner=X,--y=z",
    ]  # fmt: skip
    (done,) = run_here([command], "components.pipeline")
    assert done.returncode == 0, done.stderr
    assert "Written: " in done.stdout
    return yaml.safe_load(file.read_text())


@pytest.mark.xdist_group("pipeline")
class TestCompiled:
    def test_kfps_own_schema_takes_it(self, compiled):
        spec = json_format.ParseDict(compiled, pipeline_spec_pb2.PipelineSpec())
        assert spec.pipeline_info.name == "sela-tf"
        assert sorted(spec.root.dag.tasks) == ["data-ingestion", "linear-probe", "self-labelling"]
        probe = spec.root.dag.tasks["linear-probe"]
        assert set(probe.dependent_tasks) == {"data-ingestion", "self-labelling"}
        assert {each.task_output_artifact.producer_task for each in probe.inputs.artifacts.values()} == {
            "data-ingestion",
            "self-labelling",
        }

    def test_image_resources_and_retries(self, compiled):
        executors = compiled["deploymentSpec"]["executors"]
        assert len(executors) == 3
        for name, executor in executors.items():
            container = executor["container"]
            assert container["image"] == "registry/sela-tf:1"
            assert (container["resources"]["resourceCpuLimit"], container["resources"]["resourceMemoryLimit"]) == ("8", "32G")
            assert ("accelerator" in container["resources"]) == (name == "exec-self-labelling")
            assert "pip install" not in str(container["command"])
        for name, task in compiled["root"]["dag"]["tasks"].items():
            assert task["retryPolicy"]["maxRetryCount"] == 3
            # kfp would not see that there are new images
            assert task.get("cachingOptions", {}).get("enableCache", False) == (name != "data-ingestion")

    def test_steps_are_told_what_was_asked(self, compiled):
        """The components' own doors read the flags back."""
        told = {name: each["defaultValue"] for name, each in compiled["root"]["inputDefinitions"]["parameters"].items()}
        assert shlex.split(told["ingestion"]) == [
            "--dataset=folder:/data/with space", "--beam_pipeline_args=--runner=X,--y=z",
        ]  # fmt: skip

        def asked(command, text: str, **places: str):
            values = command.make_flags()
            flags.parse(values, ["step", *shlex.split(text), *(f"--{name}={place}" for name, place in places.items())])
            return command.read_settings(values)

        places = {name: f"/{name}" for name in ("examples", "model", "labels", "metrics")}
        _, training = asked(train_command, told["training"], **places)
        values = absl_flags.FlagValues()
        flags.define(values, SelaConfig)
        flags.parse(values, ["door", f"--flagfile={ROOT}/configs/cifar10_128x10.cfg", "--dataset=records:/examples"])
        assert training == flags.settings(values, SelaConfig)
        places = {name: f"/{name}" for name in ("examples", "model", "evaluation", "blessing")}
        verdict, probes = asked(probe_command, told["probing"], **places)
        assert (verdict.min_knn, probes.knn, probes.stages) == (0.7, (20,), ("embedding",))


class TestSettings:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--dataset=digits",), "give --root=DIR"),
            (("--dataset=digits", "--root=x", "--compile=y.yaml"), "or --compile=FILE.yaml"),
            (("--root=x",), "--dataset is missing"),
            (("--dataset=digits", "--compile=x.json"), "--compile must be a file NAME.yaml"),
            (("--dataset=digits", "--root=x", "--num_clusters=1"), "--num_clusters must be at least 2"),
            (("--dataset=digits", "--root=/etc/hostname"), "--root=/etc/hostname cannot be written"),
            (("--dataset=digits", "--compile=/none/x.yaml"), "there is no such directory"),
            (("--dataset=digits", "--compile=x.yaml", "--cpu=lots"), "--cpu must be as 4 or 500m. Received: --cpu=lots"),
            (("--dataset=digits", "--compile=x.yaml", "--memory=16GB"), "--memory must be as 16G or 16Gi"),
            (("--dataset=digits", "--compile=x.yaml", "--image="), "--image must be as REGISTRY/sela-tf:TAG"),
            (("--dataset=digits", "--root=x", "--min_knn=2"), "--min_knn must be"),
            (("--dataset=digits", "--root=x", "--knn=0"), "--knn must be"),
            (("--dataset=digits", "--root=x", "--images_per_shard=0"), "--images_per_shard must be"),
        ],
    )
    def test_are_checked_before_the_first_step(self, arguments, message, capsys, monkeypatch, tmp_path):
        from components.pipeline import main

        monkeypatch.chdir(tmp_path)
        assert main(["components.pipeline", *arguments]) == 2
        assert message in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_without_kfp(self, capsys, monkeypatch):
        from components import pipeline

        monkeypatch.setattr(pipeline.importlib.util, "find_spec", lambda name: None)
        assert pipeline.main(["components.pipeline", "--dataset=digits", "--root=x"]) == 2
        newest = capsys.readouterr().err
        assert newest.endswith("pip install 'sela-tf[pipelines]'\n")
        monkeypatch.setattr("sela_tf.compat.releases.RELEASE", "2.17")
        assert pipeline.main(["components.pipeline", "--dataset=digits", "--root=x"]) == 2
        assert capsys.readouterr().err.startswith(
            f"{newest[:-1]}, in an environment with TensorFlow 2.21: with 2.17 the components are"
        )


class TestHere:
    @pytest.mark.slow
    def test_a_step_that_fails_ends_it_with_its_cause(self, tmp_path, rng):
        (tmp_path / "images").mkdir()
        for i in range(4):
            (tmp_path / "images" / f"{i}.png").write_bytes(encoded(picture(rng), "PNG")[: -20 if i == 2 else None])
        command = [f"--dataset=folder:{tmp_path}/images", *TRAINING, f"--root={tmp_path}/root"]
        (done,) = run_here([command], "components.pipeline")
        (alone,) = run_here(
            [[f"--dataset=folder:{tmp_path}/images", f"--examples={tmp_path}/alone"]], "components.data_ingestion.__main__"
        )
        assert done.returncode == alone.returncode
        (cause,) = re.findall("components.data_ingestion: error: .*", done.stdout)
        assert "2.png (a damaged or cut png)" in cause
        assert "a step failed" in done.stderr
        assert "== self-labelling" not in done.stdout
        assert "Traceback" not in done.stdout + done.stderr

    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["a step", "the parent", "a stop"])
    def test_a_kill_ends_all_of_it(self, tmp_path, kind):
        command = ["components.pipeline", "--dataset=digits", *TRAINING, "--epochs=100000", f"--root={tmp_path}/root"]
        with Tree(*command, output=tmp_path / "said") as tree:
            tree.wait_for_words("steps an epoch")
            step = tree.wait_for(lambda line: "executor_main" in line and not line.startswith("sh "))
            os.kill(step if kind == "a step" else tree.process.pid, signal.SIGTERM if kind == "a stop" else signal.SIGKILL)
            status, said = tree.ends(), tree.said()
        if kind == "a step":
            assert status == WorkerLostError.exit_status
            assert "components.pipeline: error: the step self-labelling was ended by SIGKILL, as the kernel does" in said
            assert "Traceback" not in said
        elif kind == "the parent":
            assert status == -signal.SIGKILL
        else:
            assert status == 128 + signal.SIGTERM
            # the step has ended by itself
            assert "components.self_labelling: stopped" in said or "SIGTERM: saving" in said
            assert said.endswith("components.pipeline: stopped; the same command continues\n")
        assert "== linear-probe" not in said

    @pytest.mark.slow
    def test_a_compiled_step_works_where_its_artifacts_are_not(self, tmp_path):
        """Artifacts go where kfp says, as on a cluster: the functions of the steps themselves, one after another."""
        code = f"""
import tempfile
from kfp import dsl
from components import kfp_steps
def artifact(kind, name):
    return kind(name=name, uri="{tmp_path}/kfp/" + name)
real = tempfile.mkdtemp
tempfile.mkdtemp = lambda *args, **kwargs: real(*args, **kwargs) if args or kwargs else "{tmp_path}/own-disk"
examples, model = artifact(dsl.Dataset, "examples"), artifact(dsl.Model, "model")
figures, report = artifact(dsl.Metrics, "figures"), artifact(dsl.Markdown, "report")
kfp_steps.data_ingestion(examples, "--dataset=digits --eval_fraction=0.25", "")
others = {{name: artifact(dsl.Artifact, name) for name in ("labels", "metrics", "evaluation", "blessing")}}
kfp_steps.self_labelling(examples, model, others["labels"], others["metrics"], figures, {shlex.join(TRAINING)!r}, "", "")
print(kfp_steps.linear_probe(examples, model, others["evaluation"], others["blessing"], report, figures, "--min_knn=0.5 --stages=embedding", ""))
print(figures.metadata["knn"])
"""
        (tmp_path / "kfp").mkdir()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
        blessed, knn = done.stdout.splitlines()[-2:]
        assert blessed == "True"
        assert 0.5 < float(knn) < 1
        for place in (tmp_path / "own-disk", tmp_path / "kfp" / "model" / "Run"):
            assert (place / "results.json").exists()
        assert (tmp_path / "kfp" / "blessing" / "BLESSED").exists()
        assert (tmp_path / "kfp" / "report").read_text().startswith("# Evaluation")

    @pytest.mark.slow
    def test_all_of_it_and_again(self, tmp_path):
        """`make pipeline`, of a training of seconds."""
        make_directory(tmp_path, None)
        small = (*TRAINING, "--dataset=digits", "--min_knn=0.5", "--min_linear_probe=0", "--stages=embedding")
        first = run_make("pipeline", tmp_path, *small)
        assert first.returncode == 0, first.stdout + first.stderr
        assert re.findall("^== (.*)", first.stdout, re.MULTILINE) == ["data-ingestion", "self-labelling", "linear-probe"]
        assert "epoch 1/2: loss" in first.stdout  # what it does is seen
        assert "**Blessed**" in first.stdout
        assert first.stdout.index("| kNN, k = 10 ") > first.stdout.index("== linear-probe")
        assert "unchanged" not in first.stdout
        assert first.stderr == ""
        second = run_make("pipeline", tmp_path, *small)
        assert second.returncode == 0, second.stdout + second.stderr
        assert second.stdout.count("unchanged since it was ") == 3
        # another training needs no other ingestion
        third = run_make("pipeline", tmp_path, *small, "--seed=1")
        assert third.stdout.count("unchanged since it was ingested") == 1
        assert third.stdout.count("unchanged") == 1
        assert len(list((tmp_path / "runs" / "pipeline" / "self_labelling" / "model").iterdir())) == 2


def test_the_dockerfile_copies_what_is_there():
    text = (ROOT / "components" / "Dockerfile").read_text()
    for line in re.findall("^COPY (.*)", text, re.MULTILINE):
        for name in line.split()[:-1]:
            assert (ROOT / name).exists(), name
