"""The code blocks of the documentation, and the way in which a test runs them."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from fixtures import ROOT, Door, run_modules
from sklearn.datasets import load_digits

PAGES = [ROOT / "README.md", ROOT / "BUILD.md", *sorted((ROOT / "docs").glob("*.md"))]
_REASON = re.compile(r"<!-- not run: (.+?) -->")
_CHANGE = re.compile(r"<!-- change: (?:new file (?P<new>\S+)|(?P<path>\S+), after: (?P<after>.+)) -->")
_INDENT = "    "
_DONE_OTHERWISE = {
    ". .venv/bin/activate": "the test's own Python stands for the environment",
    "pip install sela-tf": "tests/test_package.py installs the wheel in a clean environment",
    "make demo": "test_the_demo_learns of tests/test_training.py runs it, and looks at what it learned",
    "make pipeline": "test_all_of_it_and_again of tests/test_pipeline.py runs it, again, and with another seed",
}
_PLACEHOLDERS = {
    "/path/to/images": "images", "/path/to/readable": "readable", r"(?<![\w.])/(?=tmp/|srv/)": "", r"\bRUN\b": "runs/digits", r"\bOTHER_MODEL\b": "MODEL",
    "…": "--workdir=tmp/dots",
}  # fmt: skip
"""Names in commands, as regular expressions, and what stands for them in the directory where the commands are run."""
_SMALL = {
    "sela_tf.train": {
        "epochs": "1",
        "width": "8",
        "num_heads": "1",
        "num_clusters": "4",
        "batch_size": "32",
        "num_relabellings": "2",
    },
}
_SMALL["components.self_labelling"] = _SMALL["sela_tf.train"]
_SMALL["components.pipeline"] = _SMALL["sela_tf.train"]
"""Settings that are added to a command which does not have them, so that it takes seconds: by module."""
_SMALL_IMAGES = {"imagenet": ["--image_size=64"]}
"""The same for recipes with such a word in their command."""


class Block(NamedTuple):
    """A fenced or an indented block."""

    page: str
    line: int
    kind: str
    """The word after the fence; "" for an indented block."""
    text: str
    reason: str
    """The reason why it is not run, or ""."""

    @property
    def commands(self) -> list[str]:
        """The commands of a shell, without comments; a line that ends in a backslash is continued; the console command is the module's."""
        lines = self.text.replace("\\\n", " ").splitlines()
        found = [command for line in lines if (command := re.sub(r"(^|\s+)#( .*|$)", "", line).strip().removeprefix("$ "))]
        return [re.sub(r"^sela-tf (\w+)", r"python -m sela_tf.\1", command) for command in found]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


class Change(NamedTuple):
    """A change of the code that a page describes: a new file, or lines that are added to one."""

    path: str
    after: str
    """The text of the line after which the lines are added; "" for a new file."""
    text: str

    def apply(self, root: pathlib.Path) -> None:
        """Makes the change in a copy of the code."""
        path = root / self.path
        if not self.after:
            path.write_text(self.text + "\n")
            return
        before = path.read_text()
        assert before.count(self.after) == 1, f"{self.path}: {self.after}"
        # A line that is not wrapped may go on after its opening bracket.
        end = "" if before.partition(self.after)[2].startswith("\n") else "\n"
        path.write_text(before.replace(self.after, f"{self.after}\n{self.text}{end}"))


def changes(page: pathlib.Path) -> dict[str, list[Change]]:
    """The changes that a page describes, by the title of their section."""
    found: dict[str, list[Change]] = {}
    lines = page.read_text().split("\n")
    for i, line in enumerate(lines):
        change = _CHANGE.fullmatch(line.strip())
        if change:
            title = next(each for each in reversed(lines[:i]) if each.startswith("#"))
            end = next(j for j in range(i + 2, len(lines)) if lines[j].startswith("```"))
            text = "\n".join(lines[i + 2 : end])
            found.setdefault(title, []).append(Change(change["new"] or change["path"], change["after"] or "", text))
    return found


def blocks(page: pathlib.Path) -> list[Block]:
    """The blocks of a page, in order."""
    lines = page.read_text().split("\n")
    found, i = [], 0
    while i < len(lines):
        start, before = i, next((line for line in reversed(lines[:i]) if line.strip()), "")
        if lines[i].startswith("```"):
            end = next(j for j in range(i + 1, len(lines)) if lines[j].startswith("```"))
            kind, text, i = lines[i][3:].strip(), lines[i + 1 : end], end + 1
        elif lines[i].startswith(_INDENT) and (i == 0 or not lines[i - 1].strip() or lines[i - 1].startswith("<!--")):
            while i < len(lines) and (lines[i].startswith(_INDENT) or not lines[i].strip()):
                i += 1
            kind, text = "", [line.removeprefix(_INDENT) for line in lines[start:i]]
        else:
            i += 1
            continue
        reason = _REASON.fullmatch(before.strip())
        if _CHANGE.fullmatch(before.strip()):
            kind = "change"
        found.append(
            Block(page.relative_to(ROOT).as_posix(), start + 1, kind, "\n".join(text).strip("\n"), reason[1] if reason else "")
        )
    return found


def can_be_run(command: str) -> bool:
    """Tells whether `run_commands` knows what to do with a command."""
    return command in _DONE_OTHERWISE or command.startswith(("python -m sela_tf.", "python -m components."))


def make_directory(path: pathlib.Path, run: pathlib.Path | None, *, checkout: bool = True) -> None:
    """Fills a directory with what a page needs: the checkout, images, features and, if it is given, a finished run."""
    for entry in ROOT.iterdir() if checkout else ():
        if not entry.name.startswith(".") and entry.name != "runs":
            (path / entry.name).symlink_to(entry)
    digits = load_digits()
    for i in range(80):
        file = path / "images" / f"class_{digits.target[i]}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(tf.io.encode_png(np.uint8(digits.images[i][..., np.newaxis] * 15)).numpy())
    np.save(path / "FILE.npy", digits.data[:200].astype(np.float32))
    if run is not None:
        shutil.copytree(run, path / "runs" / "digits")
    # an environment as make would make it, whose Python is the test's
    (path / "venv" / "bin").mkdir(parents=True)
    (path / "venv" / "bin" / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (path / "venv" / "bin" / "python").chmod(0o755)
    for name in (".python", ".core", ".dev"):
        (path / "venv" / name).touch()


def run_commands(commands: Sequence[str], directory: pathlib.Path) -> Iterator[tuple[str, Door]]:
    """Runs the commands of a page one after another; those that follow one another share a process; those that other tests run are left out."""
    waiting: list[tuple[str, list[str]]] = []
    for command in [*commands, ""]:
        if command.startswith("python -m "):
            waiting.append((command, module_and_arguments(command)))
            continue
        if waiting:
            doors = run_modules([argv for _, argv in waiting], cwd=directory)
            yield from zip((one for one, _ in waiting), doors, strict=True)
            waiting = []


def run_make(target: str, directory: pathlib.Path, *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs a target of the Makefile in a directory of `make_directory`, with its environment."""
    command = ["make", target, "VENV=venv", f"FLAGS={shlex.join(flags)}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=600, check=False, env=environment)


def fill_in(text: str) -> str:
    """Puts directories in the place of the names that stand for those of the reader."""
    for pattern, instead in _PLACEHOLDERS.items():
        text = re.sub(pattern, instead, text)
    return text


def module_and_arguments(command: str) -> list[str]:
    """The module of a command, and its arguments with those that make it small."""
    module, *arguments = shlex.split(fill_in(command))[2:]
    package = (ROOT / module.replace(".", "/")).is_dir()
    return [f"{module}.__main__" if package else module, *arguments, *_small(module, command)]


def _small(module: str, command: str) -> list[str]:
    small = [f"--{name}={value}" for name, value in _SMALL.get(module, {}).items() if f"--{name}=" not in command]
    return small + [
        flag for word, flags in _SMALL_IMAGES.items() if word in command and "--compile" not in command for flag in flags
    ]
