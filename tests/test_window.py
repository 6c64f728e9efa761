"""Which TensorFlow an environment gets, or keeps, with `pip install sela-tf`: resolved and not installed."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sysconfig
import tomllib

import pytest
from fixtures import ROOT
from packaging.requirements import Requirement

HELD = {
    "2.15.1": "keras==2.15.0 tensorboard==2.15.2 numpy==1.23.5 protobuf==4.23.4",
    "2.15.1 with newer companions": "keras==2.15.0 tensorboard==2.15.2 numpy==1.26.4 protobuf==4.25.3",
    "2.16.2": "keras==3.3.3 tensorboard==2.16.2 numpy==1.26.4 protobuf==4.25.3",
    "2.17.1": "keras==3.4.1 tensorboard==2.17.1 numpy==1.26.4 protobuf==4.25.5",
    "2.18.1": "keras==3.8.0 tensorboard==2.18.0 numpy==2.0.2 protobuf==5.29.4",
    "2.19.0": "keras==3.10.0 tensorboard==2.19.0 numpy==2.0.2 protobuf==5.29.5",
    "2.20.0": "keras==3.11.3 tensorboard==2.20.0 numpy==2.2.6 protobuf==6.32.0",
    "2.21.0": "keras==3.13.2 numpy==2.4.2 protobuf==6.33.5",
}
"""Environments that people have, on Python 3.11. Colab had the one with 2.19.0."""


def resolved(directory: pathlib.Path, *options: str, held: str = "") -> dict[str, str]:
    """The versions that an installer would take, by name. `held` are the versions that are there already."""
    (directory / "held.txt").write_text("\n".join(held.split()))
    uv = pathlib.Path(sysconfig.get_path("scripts")) / "uv"
    command = [
        uv,
        "pip",
        "compile",
        "--quiet",
        "--no-header",
        "--no-annotate",
        "--constraint",
        directory / "held.txt",
        *options,
        "pyproject.toml",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return dict(re.findall(r"^([\w.-]+)==(\S+)", done.stdout, re.MULTILINE))


@pytest.mark.slow
@pytest.mark.parametrize("name", HELD)
def test_an_environment_keeps_what_it_has(name, tmp_path):
    held = f"tensorflow=={name.split()[0]} {HELD[name]}"
    found = resolved(tmp_path, "--python-version=3.11", held=held)
    for pin in held.split():
        package, version = pin.split("==")
        assert found[package] == version


@pytest.mark.slow
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_a_fresh_environment_gets_the_newest(python, tmp_path):
    found = resolved(tmp_path, f"--python-version={python}")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (tensorflow,) = (need for need in map(Requirement, project["dependencies"]) if need.name == "tensorflow")
    (end,) = (each.version for each in tensorflow.specifier if each.operator == "<")
    assert found["tensorflow"].split(".")[:2] == ["2", str(int(end.split(".")[1]) - 1)]
    assert found["keras"].startswith("3.")


@pytest.mark.slow
def test_the_extra_addons_gets_the_last_tensorflow_that_it_lives_with(tmp_path):
    found = resolved(tmp_path, "--python-version=3.11", "--extra=addons")
    assert found["tensorflow"].startswith("2.15.")
    assert found["tensorflow-addons"].startswith("0.23.")
