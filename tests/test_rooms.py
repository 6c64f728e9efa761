"""The structure of the code: rooms and their layers, the walk through them, and docstrings that say what a thing is."""

from __future__ import annotations

import ast
import json
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import scipy.io
from doc_blocks import changes
from fixtures import ROOT, SMALL
from sklearn.datasets import load_digits

# Imports go downwards only. What stands on one line knows nothing of its neighbours.
LAYERS = [
    {"train", "probe", "export", "label", "report", "convert"},
    {"commands"},
    {"training", "tasks"},
    {"runs"},
    {"cli"},
    {"settings"},
    {"self_labelling", "callbacks"},
    {"evaluation", "serving", "reporting", "clustering"},
    {"data", "models", "transport"},
    {"compat", "files"},
]


def _layer(module: str) -> int:
    return next(i for i, layer in enumerate(LAYERS) if module in layer)


def _own_imports(path: pathlib.Path) -> set[str]:
    """The first part below sela_tf of everything that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        assert getattr(node, "level", 0) == 0, f"{path} imports relatively"
        if isinstance(node, ast.ImportFrom) and node.module == "sela_tf":
            found |= {alias.name for alias in node.names} - {"__version__"}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("sela_tf."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("sela_tf.")}
    return found


def test_imports_go_downwards():
    for path in sorted((ROOT / "sela_tf").rglob("*.py")):
        if path.name == "__init__.py" and path.parent.name == "sela_tf":
            continue
        here = path.relative_to(ROOT / "sela_tf").parts[0].removesuffix(".py")
        for other in _own_imports(path):
            assert other == here or _layer(other) > _layer(here), f"{path} imports sela_tf.{other}"


def test_the_top_of_the_package_holds_doors_and_rooms_alone():
    top = ROOT / "sela_tf"
    doors = {f"{name}.py" for name in LAYERS[0]}
    assert {path.name for path in top.glob("*.py")} == doors | {"__init__.py"}
    assert {path.name for path in top.iterdir() if (path / "__init__.py").exists()} == set().union(*LAYERS[1:])
    assert all(len((top / door).read_text().splitlines()) <= 45 for door in doors)


def test_only_the_command_line_knows_absl_and_only_the_top_knows_the_settings():
    for path in (ROOT / "sela_tf").rglob("*.py"):
        text = path.read_text()
        room = path.relative_to(ROOT / "sela_tf").parts[0]
        if "absl" in text:
            assert room in ("cli", "train.py"), path
        if "SelaConfig" in text:
            assert room in ("__init__.py", "train.py", "cli", "commands", "training", "runs", "settings"), path


def test_components_stand_on_the_library_and_executors_know_no_orchestrator():
    def imported(path: pathlib.Path) -> set[str]:
        nodes = list(ast.walk(ast.parse(path.read_text())))
        names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom)}

    for path in (ROOT / "sela_tf").rglob("*.py"):
        others = {"components", "kfp", "apache_beam", "tfx"} - ({"apache_beam"} if path.parent.name == "tasks" else set())
        assert not {name.split(".")[0] for name in imported(path)} & others, path
    for path in (ROOT / "components").rglob("*.py"):
        tops = {name.split(".")[0] for name in imported(path)}
        if path.parent.name != "components":
            assert not tops & {"kfp", "tfx"}, path
        assert "apache_beam" not in tops, path


def _docstrings(path: pathlib.Path) -> list[tuple[int, str]]:
    """The docstrings of a file, those of attributes included, with their lines."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        body = getattr(node, "body", [])
        for each in body if isinstance(body, list) else []:
            if isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant) and isinstance(each.value.value, str):
                found.append((each.lineno, each.value.value.strip()))
    return found


_WITHOUT_SUBJECT = re.compile(
    r"(Of|What|As|Whether|That|Those|Likewise|Which|How|Where|Also|With|Without|In|On|By|For|From|To|See|Until|Within)\b|[a-z]|Raises:"
)


def test_docstrings_begin_with_their_subject():
    """They are read in an editor's hover, without the file around them."""
    assert _WITHOUT_SUBJECT.match("Of a number.")
    assert not _WITHOUT_SUBJECT.match("Offsets of the records.")
    left = [
        f"{path}:{line}: {text[:60]}"
        for room in ("sela_tf", "components")
        for path in sorted((ROOT / room).rglob("*.py"))
        for line, text in _docstrings(path)
        if _WITHOUT_SUBJECT.match(text)
    ]
    assert left == []


class TestWalk:
    """docs/walk.md: every function that it names is there, and what it says to add works."""

    page = ROOT / "docs" / "walk.md"

    def test_every_function_is_where_it_says(self):
        named = re.findall(r"`([\w/]+\.py)::([\w.]+)`", self.page.read_text())
        assert len(named) > 40
        for file, name in named:
            scope: list[ast.stmt] = ast.parse((ROOT / "sela_tf" / file).read_text()).body
            for part in name.split("."):
                found = [node for node in scope if part in _names(node)]
                assert found, f"{file} has no {name}"
                scope = getattr(found[0], "body", [])

    def test_it_shows_every_room(self):
        text = self.page.read_text()
        assert {room for layer in LAYERS for room in layer} <= set(re.findall(r"`(\w+)(?:/|\.py)`", text))

    @pytest.mark.slow
    def test_a_backbone_a_source_and_a_metric_are_added(self, tmp_path):
        shutil.copytree(ROOT / "sela_tf", tmp_path / "sela_tf", ignore=shutil.ignore_patterns("__pycache__"))
        for title, made in changes(self.page).items():
            assert 1 < len({change.path for change in made}) <= 3, title
            for change in made:
                change.apply(tmp_path)
        assert len(changes(self.page)) == 3
        digits = load_digits()
        images = (digits.images * 15).astype(np.uint8)
        scipy.io.savemat(tmp_path / "digits.mat", {"X": np.moveaxis(images, 0, -1)[:, :, np.newaxis], "y": digits.target})
        options = ["--dataset=mat:digits.mat", "--backbone=plain", "--crop_scale=1", f"--workdir={tmp_path / 'run'}"]
        done = subprocess.run(
            [sys.executable, "-m", "sela_tf.train", *SMALL, *options],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert "homogeneity" in done.stdout
        results = json.loads((tmp_path / "run" / "results.json").read_text())
        assert 0.1 < results["trained"]["homogeneity"][0] <= 1
        assert (results["config"]["backbone"], results["config"]["dataset"]) == ("plain", f"mat:{tmp_path}/digits.mat")


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.Assign):
        return {target.id for target in node.targets if isinstance(target, ast.Name)}
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return {node.target.id}
    return {getattr(node, "name", "")}
