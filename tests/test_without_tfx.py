"""Where TFX is missing, or cannot be installed, the way out is named; what TFX does is tested in tests/in_tfx."""

from __future__ import annotations

import importlib
import os
import pathlib
import subprocess

import pytest
from fixtures import ROOT, is_one_line, run_here

from components.data_ingestion.__main__ import main as ingestion
from components.flag_lines import arguments
from components.reports import mean_figures
from sela_tf.settings.fields import ConfigError


@pytest.mark.parametrize("name", ["data_ingestion", "self_labelling", "linear_probe"])
def test_the_face_of_a_component_names_the_extra(name):
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'sela-tf\[tfx\]'"):
        importlib.import_module(f"components.{name}.component")


def test_the_pipeline_names_it_before_any_work(tmp_path):
    (done,) = run_here([["--dataset=digits", f"--root={tmp_path}/root"]], "components.pipeline_tfx")
    is_one_line(done, "pip install 'sela-tf[tfx]'", door="components.pipeline_tfx")
    assert list(tmp_path.iterdir()) == []


def test_flags_in_one_line():
    (settings,) = arguments(ingestion, "--dataset='folder:/with space' --images_per_shard=7", examples="/out")
    assert (settings.dataset, settings.images_per_shard, settings.examples) == ("folder:/with space", 7, "/out")
    with pytest.raises(ConfigError, match="Unknown command line flag 'shards'"):
        arguments(ingestion, "--dataset=digits --shards=2", examples="/out")


def test_mean_figures():
    assert mean_figures({"knn": 0.5, "nmi": [0.2, 0.4], "name": "x", "none": [], "mixed": [1, "a"]}) == pytest.approx(
        {"knn": 0.5, "nmi": 0.3}
    )


class TestRoot:
    """`tools/tfx_root.sh` on machines that this one is not: programs of theirs stand in for `getconf`, `id` and debootstrap."""

    @staticmethod
    def run(tmp_path: pathlib.Path, *command: str, glibc: str, user: int) -> subprocess.CompletedProcess[str]:
        programs = {"getconf": f"echo glibc {glibc}", "id": f"echo {user}", "debootstrap": "echo no such mirror; exit 1"}
        for name, line in programs.items():
            (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
            (tmp_path / name).chmod(0o755)
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TFX_ROOT": f"{tmp_path}/root"}
        return subprocess.run(
            [str(ROOT / "tools" / "tfx_root.sh"), *command], env=environment, capture_output=True, text=True, check=False
        )

    def test_glibc_is_new_enough(self, tmp_path):
        done = self.run(tmp_path, "sh", "-c", "pwd; exit 7", glibc="2.38", user=1000)
        assert (done.returncode, done.stdout) == (7, f"{ROOT}\n")

    def test_without_root(self, tmp_path):
        done = self.run(tmp_path, "true", glibc="2.36", user=1000)
        assert done.returncode == 1
        assert (
            "TFX needs glibc 2.38, and this machine has 2.36. Take Debian 13 or Ubuntu 24.04, or repeat the command as root"
            in done.stderr
        )

    @pytest.mark.skipif(os.getuid() != 0, reason="only root has namespaces of mounts")
    def test_a_root_that_cannot_be_made(self, tmp_path):
        done = self.run(tmp_path, "true", glibc="2.9", user=0)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].endswith("root.log: no such mirror")
        assert not (tmp_path / "root").exists()
