"""examples/adopt: other people's forms of Keras code label their images themselves with five lines of ours."""

from __future__ import annotations

import re
import runpy
import sys

import pytest
from fixtures import ROOT
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score
from user_model import slow, slow_but_on_lanes

import sela_tf

SCRIPTS = {path.stem: path for path in sorted((ROOT / "examples" / "adopt").glob("*.py"))}
MARK, BEFORE = "  # sela-tf", re.compile(r"^( *)# before: ", re.MULTILINE)


def original(script: str) -> str:
    """The script as it was before our lines came."""
    kept = [line for line in script.splitlines() if not line.endswith(MARK)]
    return BEFORE.sub(r"\1", "\n".join(kept) + "\n")


def run(path, monkeypatch, capsys) -> float:
    """The last figure that a script prints."""
    monkeypatch.setattr(sys, "argv", [str(path)])
    runpy.run_path(str(path), run_name="__main__")
    return float(re.findall(r"NMI with the classes: ([\d.]+)", capsys.readouterr().out)[-1])


def test_there_is_one_of_each_form():
    page = (ROOT / "docs" / "keras.md").read_text()
    assert len(SCRIPTS) == 4
    assert set(re.findall(r"examples/adopt/(\w+)\.py", page)) == set(SCRIPTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_five_lines_are_ours(name):
    script = SCRIPTS[name].read_text()
    ours = [line for line in script.splitlines() if "sela_tf" in line]
    assert all(line.endswith(MARK) for line in ours)
    assert len([line for line in script.splitlines() if line.endswith(MARK)]) <= 5
    before = original(script)
    compile(before, name, "exec")
    assert "sela_tf" not in before
    assert "targets = classes\n" in before


@pytest.mark.parametrize("name", [slow_but_on_lanes(name) for name in SCRIPTS])
def test_it_learns_without_classes(name, monkeypatch, capsys):
    classes = load_digits().target
    first = normalized_mutual_info_score(classes, sela_tf.LabelTable(1, 10, len(classes)).labels[0])
    assert first < 0.03
    assert run(SCRIPTS[name], monkeypatch, capsys) > first + 0.2


@pytest.mark.parametrize("name", [slow(name) for name in SCRIPTS])
def test_it_was_a_whole_program_before(name, monkeypatch, capsys, tmp_path):
    """The lines that stood there learn the classes."""
    path = tmp_path / f"{name}.py"
    path.write_text(original(SCRIPTS[name].read_text()))
    assert run(path, monkeypatch, capsys) > 0.8
