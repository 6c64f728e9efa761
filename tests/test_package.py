"""The package as others get it: layers, public face, wheel, and the check of the interpreter."""

from __future__ import annotations

import ast
import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import numpy as np
import pytest
from fixtures import ROOT, run_doors
from sklearn.datasets import load_digits

import sela_tf


class TestPublicFace:
    def test_every_name_is_there(self):
        assert set(sela_tf._HOMES) | {"__version__"} == set(sela_tf.__all__)
        for name in sela_tf.__all__:
            assert getattr(sela_tf, name) is not None
            assert name in dir(sela_tf)
        with pytest.raises(AttributeError, match="no_such_name"):
            _ = sela_tf.no_such_name

    def test_type_checkers_see_the_same_names(self):
        tree = ast.parse((ROOT / "sela_tf" / "__init__.py").read_text())
        block = next(node for node in tree.body if isinstance(node, ast.If))
        seen = {alias.name: node.module.removeprefix("sela_tf.") for node in block.body for alias in node.names}
        assert seen == sela_tf._HOMES

    def test_importing_is_light(self):
        code = "import sys, sela_tf; print(sorted({'tensorflow', 'keras', 'sklearn', 'absl'} & set(sys.modules)))"
        done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"
        assert done.stderr == ""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> pathlib.Path:
    """Built from a copy of what git knows, so that nothing lying about gets in."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, listed):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (path,) = out.glob("*.whl")
    return path


def run_example(
    python: pathlib.Path, directory: pathlib.Path, *arguments: str, example: str = "own_model"
) -> subprocess.CompletedProcess[str]:
    """One of examples/, with warnings as errors, in a directory outside the checkout."""
    check = "\nimport pathlib\nimport sela_tf\nassert 'site-packages' in pathlib.Path(sela_tf.__file__).parts, sela_tf.__file__\n"
    (directory / "example.py").write_text((ROOT / "examples" / f"{example}.py").read_text() + check)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # Keras' variables under NumPy 2, on saving
    own = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    command = [str(python), "-W", "error", "-W", own, "example.py", *arguments]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=300, check=False, env=environment)


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory) -> pathlib.Path:
    """The interpreter of an environment whose dependencies come from this one, and the library from the wheel."""
    directory = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", directory], check=True)
    packages = pathlib.Path(sysconfig.get_path("purelib", vars={"base": str(directory)}))
    zipfile.ZipFile(wheel).extractall(packages)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return directory / "bin" / "python"


@pytest.mark.xdist_group("wheel")
class TestWheel:
    def test_is_one_group_to_xdist(self, request):
        """Its processes would each build the wheel otherwise."""
        if getattr(request.config.option, "loadgroup", False):
            assert request.node.nodeid.endswith("@wheel")

    def test_holds_the_library_alone(self, wheel):
        names = zipfile.ZipFile(wheel).namelist()
        tops = {name.split("/")[0] for name in names}
        assert tops == {"sela_tf", f"sela_tf-{sela_tf.__version__}.dist-info"}
        assert "sela_tf/py.typed" in names
        assert {f"sela_tf/reporting/page/page.{kind}" for kind in ("html", "css", "js")} <= set(names)
        assert any(name.endswith("LICENSE") for name in names)
        modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sela_tf").rglob("*.py")}
        assert modules <= set(names)
        recipes = {f"sela_tf/configs/{path.relative_to(ROOT / 'configs').as_posix()}" for path in (ROOT / "configs").rglob("*.cfg")}
        assert recipes == {name for name in names if name.endswith(".cfg")}

    def test_brings_the_console_command_with_its_recipes(self, python, tmp_path):
        code = (
            "from importlib.metadata import distribution; (command,) = distribution('sela-tf').entry_points; "
            "assert command.name == 'sela-tf'; raise SystemExit(command.load()(['sela-tf', 'train', '--recipe=help']))"
        )
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        command = [str(python), "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, check=False, env=environment)
        assert done.returncode == 0, done.stderr
        assert {line.split()[0] for line in done.stdout.splitlines()} == {path.stem for path in (ROOT / "configs").glob("*.cfg")}

    @pytest.mark.slow
    def test_readme_example_runs_from_it_with_warnings_as_errors(self, python, tmp_path):
        done = run_example(python, tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == "(2, 1797)"
        assert re.search(r"^relabel step 0 head 0: ", done.stdout, re.MULTILINE)

    @pytest.mark.slow
    def test_transport_in_a_train_step(self, python, tmp_path):
        done = run_example(python, tmp_path, example="swav_step")
        assert done.returncode == 0, done.stderr
        before, after = map(float, re.findall(r"classes (\d\.\d+)", done.stdout))
        assert before < 0.1
        assert after > 0.25

    @pytest.mark.slow
    def test_transport_alone(self, python, tmp_path):
        done = run_example(python, tmp_path, example="sinkhorn_alone")
        assert done.returncode == 0, done.stderr
        assert "balanced exactly: clusters of 400 to 400 rows" in done.stdout

    @pytest.mark.slow
    def test_a_new_network_learns_the_labels_of_a_run(self, python, tmp_path, finished):
        label = [f"--workdir={finished[0]}", "--dataset=digits", f"--output={tmp_path}/labels.parquet"]
        (door,) = run_doors([label], "sela_tf.label")
        assert door.returncode == 0, door.stderr
        done = run_example(python, tmp_path, "labels.parquet", example="train_on_labels")
        assert done.returncode == 0, done.stderr
        found, agreement = map(float, re.findall(r"0\.\d{3}", done.stdout))
        assert found > 4 / 16
        assert agreement > 0.3

    @pytest.mark.slow
    def test_choosing_k(self, python, tmp_path):
        np.save(tmp_path / "features.npy", load_digits().data.astype(np.float32))
        done = run_example(python, tmp_path, "features.npy", "4", "10", "--epochs=6", example="choose_k")
        assert done.returncode == 0, done.stderr
        rows = [line.split() for line in done.stdout.splitlines()[-2:]]
        assert [row[0] for row in rows] == ["4", "10"]
        # by chance 0, give or take .01
        assert all(0.03 < float(row[1]) <= 1 and 0 < float(row[2]) < 1 for row in rows)

    @pytest.mark.slow
    def test_installs_and_works_in_a_clean_environment(self, wheel, tmp_path):
        uv = pathlib.Path(sysconfig.get_path("scripts")) / "uv"
        python = tmp_path / "env" / "bin" / "python"
        subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "env"], check=True)
        (command,) = re.findall(r"^pip install sela-tf\b", (ROOT / "README.md").read_text(), re.MULTILINE)
        install = [str(wheel) if word == "sela-tf" else word for word in command.split()]
        options = ["--quiet", "--python", python, "--constraint", ROOT / "requirements.lock"]
        subprocess.run([uv, *install, *options], check=True, timeout=600)
        done = run_example(python, tmp_path)
        assert done.returncode == 0, done.stderr
        door = subprocess.run(
            [python, "-m", "sela_tf.train", "--version"], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        assert door.stdout.startswith(f"sela_tf {sela_tf.__version__}, ")


class TestPythonCheck:
    script = ROOT / "tools" / "check_python.py"

    @pytest.fixture
    def check_python(self):
        spec = importlib.util.spec_from_file_location("check_python", self.script)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_this_python_will_do(self):
        subprocess.run([sys.executable, self.script], check=True)

    @pytest.mark.parametrize(
        ("version", "has_venv", "message"),
        [
            ((3, 10), True, "too old"),
            ((2, 7), True, "too old"),
            ((3, 14), True, "too new"),
            ((3, 12), False, "apt install python3.12-venv"),
        ],
    )
    def test_says_what_is_wrong_and_the_way_out(self, check_python, version, has_venv, message):
        assert message in check_python.complaint(version, has_venv)
        assert "make demo PYTHON=" in check_python.complaint(version, has_venv)
        assert check_python.complaint((3, 12), True) is None

    @pytest.mark.parametrize(
        ("version", "tensorflow", "needed"),
        [((3, 12), "2.15", "3.11"), ((3, 13), "2.17", "3.11 or 3.12"), ((3, 10), "2.19", "3.11 or 3.12")],
    )
    def test_older_releases_of_tensorflow_need_older_pythons(self, check_python, version, tensorflow, needed):
        complaint = check_python.complaint(version, True, tensorflow)
        assert f": TensorFlow {tensorflow} needs {needed}. " in complaint
        assert complaint.endswith(f"make test-tf TF={tensorflow} PYTHON=python3.11")
        assert check_python.complaint((3, 11), True, tensorflow) is None

    @pytest.mark.parametrize(
        ("command", "message"),
        [
            (["demo", "PYTHON=python9"], "there is no python9"),
            (["test-tf", "TF=2.19", "PYTHON=python9"], "there is no python9. Name a Python 3.11: make test-tf TF=2.19"),
            (["test-tf", "TF=2.14"], "there is no lane of TensorFlow 2.14. Take one of 2.15 2.17 2.19"),
        ],
    )
    def test_make_names_what_is_not_there(self, tmp_path, command, message):
        shutil.copy(ROOT / "Makefile", tmp_path)
        shutil.copytree(ROOT / "tools", tmp_path / "tools")
        shutil.copytree(ROOT / "tests" / "locks", tmp_path / "tests" / "locks")
        done = subprocess.run(["make", *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert message in done.stderr


def test_locks_hold_what_pyproject_asks_for():
    """Every direct dependency is bounded, and pinned in the lock files; those of one environment agree."""
    import tomllib

    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def pins(name: str) -> set[tuple[str, str]]:
        lines = [line for line in (ROOT / name).read_text().splitlines() if re.match(r"[a-zA-Z]", line)]
        wanted = map(Requirement, lines)
        return {(pin.name.replace("_", "-").lower(), str(pin.specifier).removeprefix("==")) for pin in wanted}

    def check(needs: list[str], pinned: set[tuple[str, str]]) -> None:
        for text in needs:
            wanted = Requirement(text)
            versions = {version for name, version in pinned if name == wanted.name.replace("_", "-").lower()}
            assert versions, text
            assert any(each.operator == "<" for each in wanted.specifier), text
            assert any(each.operator == ">=" for each in wanted.specifier), text
            assert all(wanted.specifier.contains(version) for version in versions), text

    core, dev = pins("requirements.lock"), pins("requirements-dev.lock")
    assert core <= dev
    check(project["dependencies"] + project["optional-dependencies"]["dev"], dev)
    for release in ("2.15", "2.17", "2.19"):
        lane = pins(f"tests/locks/tf-{release}.lock")
        check(project["dependencies"] + project["optional-dependencies"]["serving"], lane)
        assert [version.rpartition(".")[0] for name, version in lane if name == "tensorflow"] == [release]
    check(project["optional-dependencies"]["addons"][:1], pins("tests/locks/tf-2.15.lock"))
