"""The launchers of docs/workers.md: their files are parsed, and the environment that they make is what the training reads."""

from __future__ import annotations

import os
import subprocess

import yaml
from fixtures import ROOT

from sela_tf.settings.train_options import TrainOptions
from sela_tf.settings.training import SelaConfig
from sela_tf.training.cluster import Cluster, cluster_of

DIRECTORY = ROOT / "examples" / "kubernetes"


def _flags_are_known(arguments: list[str]) -> bool:
    names = {argument.removeprefix("--").partition("=")[0] for argument in arguments if argument.startswith("--")}
    return bool(names) and names <= {*SelaConfig.__dataclass_fields__, *TrainOptions.__dataclass_fields__}


def test_the_indexed_job_names_its_pods(tmp_path):
    service, job = yaml.safe_load_all((DIRECTORY / "indexed_job.yaml").read_text())
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    count, name = spec["completions"], job["metadata"]["name"]
    assert (spec["parallelism"], spec["completionMode"], service["spec"]["clusterIP"]) == (count, "Indexed", "None")
    assert pod["subdomain"] == service["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": name}
    # A stand-in for Python says what it is started with.
    (tmp_path / "python").write_text('#!/bin/sh\nprintf "%s\\n" "$TF_CONFIG" "$@"\n')
    (tmp_path / "python").chmod(0o755)
    for index in range(count):
        environment = {each["name"]: each["value"] for each in container["env"]} | {"JOB_COMPLETION_INDEX": str(index)}
        said = subprocess.run(
            [*container["command"], *container["args"]], env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", **environment},
            capture_output=True, text=True, check=True,
        ).stdout.splitlines()  # fmt: skip
        port = service["spec"]["ports"][0]["port"]
        addresses = tuple(f"{name}-{i}.{pod['subdomain']}:{port}" for i in range(count))
        assert cluster_of({"TF_CONFIG": said[0]}) == Cluster(addresses, index)
        assert said[1:3] == ["-m", "sela_tf.train"]
        assert _flags_are_known(said[3:])


def test_the_tfjob_runs_the_command():
    job = yaml.safe_load((DIRECTORY / "tfjob.yaml").read_text())
    worker = job["spec"]["tfReplicaSpecs"]["Worker"]
    (container,) = worker["template"]["spec"]["containers"]
    # The operator looks for a container of this name, and for a port of this name.
    assert (container["name"], container["ports"][0]["name"]) == ("tensorflow", "tfjob-port")
    assert container["command"] == ["python", "-m", "sela_tf.train"]
    assert _flags_are_known(container["args"])
    # What the operator sets has one key more.
    cluster = ", ".join(f'"sela-worker-{i}.default.svc:2222"' for i in range(worker["replicas"]))
    told = f'{{"cluster": {{"worker": [{cluster}]}}, "task": {{"type": "worker", "index": 2}}, "environment": "cloud"}}'
    assert cluster_of({"TF_CONFIG": told}) == Cluster(tuple(f"sela-worker-{i}.default.svc:2222" for i in range(4)), 2)
