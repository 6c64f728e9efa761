"""The documentation: its blocks are run, its figures, links and reference are those of the project."""

from __future__ import annotations

import gzip
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from absl import flags as absl_flags
from doc_blocks import PAGES, Block, blocks, can_be_run, fill_in, make_directory, module_and_arguments, run_commands
from fixtures import ROOT

from sela_tf.cli import flags
from sela_tf.cli import main as console
from sela_tf.evaluation.metrics import evaluate_chance
from sela_tf.runs import contents
from sela_tf.runs.names import LEFT_OUT, PROBES_LEFT_OUT
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig

README = ROOT / "README.md"
BLOCKS = {page.relative_to(ROOT).as_posix(): blocks(page) for page in PAGES}
ROWS = ROOT / "docs" / "results" / "rows"


def to_run(page: str, *, python: bool) -> list[Block]:
    """The blocks of programs, or of commands; changes of the code are made by tests/test_rooms.py."""
    return [block for block in BLOCKS[page] if not block.reason and block.kind != "change" and (block.kind == "python") == python]


def readme_example() -> str:
    (example,) = [block.text for block in BLOCKS["README.md"] if block.kind == "python"]
    return example + "\n"


class TestBlocks:
    def test_each_is_run_or_says_why_not(self):
        for page in BLOCKS:
            for block in to_run(page, python=False):
                assert block.kind in ("", "sh", "console"), f"{block}: a block of {block.kind!r}: <!-- not run: reason -->"
                for command in block.commands:
                    assert can_be_run(command), f"{block}: {command!r} is not run here: <!-- not run: reason -->"
        left = [block for found in BLOCKS.values() for block in found if block.reason]
        print("Blocks that are not run:", *(f"{block}: {block.reason}" for block in left), sep="\n")
        in_readme = [block.text.split()[:2] for block in left if block.page == "README.md"]
        assert in_readme == [["make", "test"], ["22", "classes"], ["sela-tf", "report"]]

    def test_commands_have_flags_and_values_that_are_accepted(self, monkeypatch, capsys):
        """Each command up to where TensorFlow would be loaded."""

        def stop() -> None:
            raise ConfigError("accepted")

        monkeypatch.setattr("sela_tf.cli.command.load_tensorflow", stop)
        monkeypatch.setattr("signal.signal", lambda *_: None)
        monkeypatch.chdir(ROOT)
        for page in BLOCKS:
            commands = [(block, command) for block in to_run(page, python=False) for command in block.commands]
            for block, command in commands:
                if command.startswith("python -m "):
                    # the settings of a run are there only when its commands are run
                    argv = module_and_arguments(command)
                    others = [word for word in argv if not word.startswith(("--flagfile=tmp/", "--continue_from=tmp/"))]
                    importlib.import_module(argv[0]).main([*others, *(["--dataset=digits"] if len(others) < len(argv) else [])])
                    assert capsys.readouterr().err.endswith(": error: accepted\n"), f"{block}: {command}"

    def test_collector(self, tmp_path, monkeypatch):
        text = "A\n\n    a \\\n      b  # c\n\n    d\n\n- item\n\n<!-- not run: x -->\n```sh\ne\n```\n\n```python\nf\n```\n"
        (tmp_path / "x.md").write_text(text)
        monkeypatch.setattr("doc_blocks.ROOT", tmp_path)
        found = blocks(tmp_path / "x.md")
        assert [(block.line, block.kind, block.reason) for block in found] == [(3, "", ""), (11, "sh", "x"), (15, "python", "")]
        assert [re.sub(" +", " ", command) for command in found[0].commands] == ["a b", "d"]

    @pytest.mark.slow
    @pytest.mark.parametrize("page", [page for page in BLOCKS if to_run(page, python=False)])
    def test_commands(self, page, tmp_path, finished):
        """With small images in the place of the reader's, and few steps: tests/doc_blocks.py says what is replaced and added."""
        commands = [command for block in to_run(page, python=False) for command in block.commands]
        make_directory(tmp_path, finished[0])
        for command, done in run_commands(commands, tmp_path):
            assert done.returncode == 0, f"{page}: {command}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"

    @pytest.mark.slow
    @pytest.mark.parametrize("page", [page for page in BLOCKS if page != "README.md" and to_run(page, python=True)])
    def test_python(self, page, tmp_path, finished):
        """The blocks of a page are one program, with warnings as errors; docs/keras.md continues the program of the README, which tests/test_package.py runs."""
        make_directory(tmp_path, finished[0], checkout=False)
        parts = [block.text for block in to_run(page, python=True)]
        if page == "docs/keras.md":
            parts.insert(0, readme_example())
        (tmp_path / "tmp").mkdir()
        (tmp_path / "program.py").write_text(fill_in("\n\n".join(parts)))
        # Keras' variables under NumPy 2, on saving; and what Beam says of itself
        allowed = ["-W", "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"]
        strict = [] if "components" in page else ["-W", "error", *allowed]
        command = [sys.executable, *strict, "program.py"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False, env=environment)
        assert done.returncode == 0, f"{page}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        if "components" in page:
            assert done.stdout.splitlines()[-1] == "True"  # the model is blessed


class TestReadme:
    def test_it_is_a_page(self):
        """With the twenty lines that the one command prints."""
        assert len(README.read_text().splitlines()) <= 138

    def test_its_command_trains_on_what_it_names(self):
        (command,) = re.findall(r"sela-tf train (--dataset=folder:.*)", README.read_text())
        values = absl_flags.FlagValues()
        flags.define(values, SelaConfig)
        absl_flags.DEFINE_string("workdir", None, "", flag_values=values)
        flags.parse(values, ["door", *command.split()])
        assert flags.typed(values, SelaConfig) == {"dataset": "folder:/path/to/images"}
        assert values["workdir"].value

    def test_it_shows_the_example_that_is_run(self):
        """By tests/test_package.py, from the wheel."""
        assert (ROOT / "examples" / "own_model.py").read_text().endswith(f'"""\n\n{readme_example()}')
        listed = set(re.findall(r"`examples/(\w+)\.py`", (ROOT / "docs" / "use.md").read_text()))
        assert listed == {path.stem for path in (ROOT / "examples").glob("*.py")}

    def test_its_figures_are_those_of_the_rows(self, fashion_mnist):
        def means(name: str) -> list[str]:
            runs = [json.loads((ROWS / f"{name}-{seed}.json").read_text()) for seed in range(3)]
            values = []
            for run in runs:
                probes = run["probes"]["trained"]
                heads = [run["trained"][key][0] if "trained" in run else np.nan for key in ("nmi", "ami")]
                kmeans = [probes["kmeans"]["128"][key][0] for key in ("nmi", "ami")]
                accuracies = [probes["knn"]["10"], probes["linear_probe"]["embedding"]]
                values.append([*accuracies, *heads, *kmeans, run["course"][-1]["training_seconds"]])
            return [shown(mean, 0 if i == 6 else 3) for i, mean in enumerate(np.mean(values, axis=0))]

        def shown(value: float, digits: int = 3) -> str:
            return "" if np.isnan(value) else f"{value:.{digits}f}".replace("0.", ".", 1)

        table = [
            [cell.strip() for cell in line.strip("|").split("|")] for line in README.read_text().splitlines() if line[:2] == "| "
        ]
        best, longer, simclr, classes, untrained, chance = (row[1:] for row in table[1:])
        assert best == means("best")
        assert longer == means("best_x2")
        assert simclr == means("simclr_jitter_80_rate_20")
        assert classes == means("supervised")
        runs = [json.loads((ROWS / f"best-{seed}.json").read_text())["untrained"] for seed in range(3)]
        first = [np.mean([np.mean(run[key]) for run in runs]) for key in ("knn", "linear_probe", "nmi", "ami")]
        assert untrained == [*map(shown, first), "", "", ""]
        numbers = gzip.decompress((fashion_mnist / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
        guesses = [evaluate_chance(np.frombuffer(numbers, np.uint8).astype(np.int64), 128, seed=seed) for seed in range(3)]
        guessed = [np.mean([np.mean(guess[key]) for guess in guesses]) for key in ("knn", "linear_probe", "nmi", "ami")]
        assert chance == [*map(shown, guessed), "", "", ""]


def test_links_lead_somewhere():
    def anchors(text: str) -> set[str]:
        titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
        return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}

    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://)([^)\s]+)\)", page.read_text()):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), f"{page}: {target}"
            assert not anchor or anchor in anchors(file.read_text()), f"{page}: {target}"


class TestReference:
    def test_it_is_what_the_code_makes_now(self):
        spec = importlib.util.spec_from_file_location("make_reference", ROOT / "tools" / "make_reference.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert (ROOT / "docs" / "reference.md").read_text() == module.make(), "make reference"
        assert {f"sela_tf.{name}" for name in console._COMMANDS} <= {*module.COMMANDS}

    @pytest.mark.slow
    def test_it_describes_all_that_a_run_holds(self, finished):
        directory = finished[0]
        assert {path.name for path in directory.iterdir()} | {"probes.json", "names.csv", LEFT_OUT, PROBES_LEFT_OUT} == set(
            contents.RUN_DIRECTORY
        )
        results = json.loads((directory / "results.json").read_text())
        assert [*results, "continued"] == list(contents.RESULT_KEYS)
        figures = {key for name in list(results)[:4] for key in results[name]}
        assert figures | {"reason"} == set(contents.FIGURE_KEYS)
        with np.load(directory / "labels.npz") as arrays:
            assert {*arrays, "names", "cluster_names"} == set(contents.LABEL_ARRAYS)
        rows = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
        assert {row["kind"] for row in rows} | {"warning"} == set(contents.METRIC_ROWS)


def test_the_table_of_faults_names_tests_that_there_are():
    rows = [line for line in (ROOT / "docs" / "promises.md").read_text().splitlines() if line.startswith("|")]
    named = [name for row in rows for name in re.findall(r"`(tests/[^`]*)`", row)]
    assert len(named) > 5
    for name in named:
        path, *parts = name.split("::")
        text = (ROOT / path).read_text()
        assert all(re.search(rf"^ *(?:def|class) {part}\b", text, re.MULTILINE) for part in parts), name
