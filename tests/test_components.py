"""Self-labelling and linear probe as components: on real records, without any orchestrator."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow as tf
from fixtures import ROOT, SMALL, is_one_line, run_doors, run_here, run_modules
from served import ask

from components.linear_probe.executor import headline, objections
from components.settings import LinearProbeSettings
from sela_tf.data.record_writer import Record, example_id, shard_name, write_manifest, write_shard
from sela_tf.data.sources import load_source
from sela_tf.data.splits import hold_out
from sela_tf.runs.network import load_run
from sela_tf.settings.fields import ConfigError

pytestmark = pytest.mark.xdist_group("components")

TRAINING = [flag for flag in SMALL if not flag.startswith("--dataset")]


class Made(NamedTuple):
    """The artifacts that the two components made of the digits, and what the components said."""

    root: pathlib.Path
    training: tuple[int, str, str]
    probing: tuple[int, str, str]

    def places(self, *names: str) -> list[str]:
        return [f"--{name}={self.root / name}" for name in names]


TRAIN_TO, PROBE_TO = ("examples", "model", "labels", "metrics"), ("examples", "model", "evaluation", "blessing")


def write_digits(directory: pathlib.Path, *, classes: bool = True, held_out: bool = True) -> None:
    """Writes the digits as ingestion does, without Beam."""
    source = load_source("digits").train
    sets = dict(zip(("train", "eval"), hold_out(source, 0.25), strict=True)) if held_out else {"train": source}
    shards = {}
    for split, images in sets.items():
        records = [
            Record(
                f"train/{row:010d}",
                tf.io.encode_png(pixels).numpy(),
                8,
                8,
                1,
                int(label) if classes else -1,
                str(label) if classes else "",
            )
            for row, pixels, label in zip(images.rows, images.images, images.classes, strict=True)
        ]
        shards[split] = [write_shard(str(directory), shard_name(split, i, 2), records[i::2]) for i in range(2)]
    write_manifest(str(directory), shards, {"channels": 1, "class_names": list("0123456789") if classes else None})


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    root = tmp_path_factory.mktemp("artifacts")
    write_digits(root / "examples")
    empty = Made(root, (0, "", ""), (0, "", ""))
    training, probing = run_modules(
        [
            ["components.self_labelling.__main__", *TRAINING, *empty.places(*TRAIN_TO)],
            ["components.linear_probe.__main__", "--min_knn=0.5", "--stages=embedding", *empty.places(*PROBE_TO)],
        ]
    )
    return Made(root, training, probing)


def times(directory: pathlib.Path) -> dict[pathlib.Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


class TestSelfLabelling:
    def test_trains_as_from_the_source_itself(self, made, finished):
        """Bit for bit: the records hold the same images, in the same order."""
        assert made.training[0] == 0, made.training
        # The table stands there once.
        assert len(re.findall("^held-out images ", made.training[1], re.MULTILINE)) == 1
        run = made.root / "model" / "Run"
        assert (run / "model.weights.h5").read_bytes() == (finished[0] / "model.weights.h5").read_bytes()
        assert (run / "metrics.jsonl").read_text() == (finished[0] / "metrics.jsonl").read_text()

    def test_labels(self, made):
        """Against labels.npz and NumPy."""
        rows = pyarrow.parquet.read_table(made.root / "labels" / "labels.parquet").to_pydict()
        model = load_run(made.root / "model" / "Run")
        with np.load(made.root / "model" / "Run" / "labels.npz") as kept:
            labels, potentials, names, lam = kept["labels"], kept["potentials"], kept["names"].tolist(), float(kept["lam"])
        count, heads = len(names), len(labels)
        assert rows["source_name"] == [name for name in names for _ in range(heads)]
        assert rows["example_id"] == [example_id(name) for name in rows["source_name"]]
        assert rows["head"] == list(range(heads)) * count
        assert rows["cluster"] == labels.T.reshape(-1).tolist()
        train = load_source(f"records:{made.root}/examples").train
        assert list(train.names) == names
        logits = model.predict(train.images.astype(np.float32), verbose=0, batch_size=500).astype(np.float64) + potentials / lam
        shares = np.exp(logits - logits.max(axis=2, keepdims=True))
        shares /= shares.sum(axis=2, keepdims=True)
        chosen = np.take_along_axis(shares, labels.T[..., np.newaxis], axis=2)[..., 0]
        others = shares.copy()
        np.put_along_axis(others, labels.T[..., np.newaxis], 0, axis=2)
        np.testing.assert_allclose(rows["probability"], chosen.reshape(-1), atol=1e-4)
        np.testing.assert_allclose(rows["margin"], (chosen - others.max(axis=2)).reshape(-1), atol=1e-4)
        for head in range(heads):
            sizes = np.bincount(labels[head], minlength=16)
            assert sizes.max() - sizes.min() <= 1

    def test_the_served_model_answers_as_the_network(self, made):
        served = tf.saved_model.load(str(made.root / "model" / "Format-Serving"))
        images = load_source(f"records:{made.root}/examples").eval
        files = [tf.io.encode_png(pixels).numpy() for pixels in images.images[:16]]
        answers = ask(served, "serving_default", files)
        model = load_run(made.root / "model" / "Run")
        embedding = tf.keras.Model(model.input, model.get_layer("embedding").output)(images.images[:16].astype(np.float32))
        np.testing.assert_allclose(answers["embedding"], embedding, atol=1e-4)
        assert "largest differences" not in made.training[1]
        assert "checking it with" in made.training[1]

    @pytest.mark.slow
    def test_no_component_takes_what_another_made(self, made):
        """An artifact in the wrong place is refused before anything is removed."""
        before = times(made.root)
        places = [*made.places("examples", "model"), f"--evaluation={made.root / 'labels'}", *made.places("blessing")]
        (probe,) = run_doors([["--stages=embedding", *places]], "components.linear_probe.__main__")
        is_one_line(probe, "holds other files (labels.parquet, made_of.json)", door="components.linear_probe")
        (ingestion,) = run_doors([["--dataset=digits", f"--examples={made.root / 'model'}"]], "components.data_ingestion.__main__")
        is_one_line(ingestion, "holds other files", door="components.data_ingestion")
        assert times(made.root) == before

    def test_metrics(self, made):
        for name in ("results.json", "metrics.jsonl"):
            assert (made.root / "metrics" / name).read_bytes() == (made.root / "model" / "Run" / name).read_bytes()

    def test_again(self, made, tmp_path):
        """Unchanged work is not done twice; a model is not written over by another."""
        before = times(made.root / "model")
        again, other, missing, damaged = run_here(
            [
                [*TRAINING, *made.places(*TRAIN_TO)],
                [*TRAINING, "--seed=1", *made.places(*TRAIN_TO)],
                [*TRAINING, *made.places(*TRAIN_TO), f"--examples={tmp_path / 'none'}"],
                [*TRAINING, *made.places(*TRAIN_TO[1:])],
            ],
            "components.self_labelling.__main__",
        )
        assert again.returncode == 0, again.stderr
        assert "unchanged since it was trained" in again.stdout
        assert "kNN accuracy" in again.stdout
        door = "components.self_labelling"
        is_one_line(other, "--model=", door=door)
        assert "holds what was made of other examples or settings: name another directory" in other.stderr
        is_one_line(missing, "has no manifest.json", door=door, status=3)
        is_one_line(damaged, "--examples is missing", door=door)
        assert times(made.root / "model") == before

    def test_directories_that_lie_in_one_another(self, made, tmp_path):
        """Such directories are refused before anything is done."""
        (tmp_path / "link").symlink_to(made.root / "model")
        before = times(made.root)
        labels = [flag for flag in made.places(*TRAIN_TO) if not flag.startswith("--labels")]
        doors = run_here(
            [
                [*TRAINING, *labels, f"--labels={made.root / 'model'}"],
                [*TRAINING, *labels, f"--labels={made.root / 'model' / 'labels'}"],
                [*TRAINING, "--seed=1", *made.places("examples"), *(f"--{name}={tmp_path / name}" for name in TRAIN_TO[1:]),
                 f"--scratch={tmp_path / 'model' / 'Run' / 'x'}"],
                [*TRAINING, "--seed=1", *made.places("examples", "model"), f"--labels={tmp_path / 'l'}", f"--metrics={tmp_path / 'm'}",
                 f"--scratch={tmp_path / 'link' / 'Run'}"],
                [*TRAINING, "--seed=1", *made.places("examples", "labels"), f"--model={tmp_path / 'model'}", f"--metrics={tmp_path / 'm'}"],
            ],
            "components.self_labelling.__main__",
        )  # fmt: skip
        messages = ("lies in --", "lies in --", "lie within one another", "holds what was made of other", "--labels=")
        for door, message in zip(doors, messages, strict=True):
            is_one_line(door, message, door="components.self_labelling")
        assert times(made.root) == before
        assert list((tmp_path).iterdir()) == [tmp_path / "link"]

    @pytest.mark.slow
    def test_trains_elsewhere_and_copies(self, made, tmp_path):
        places = [f"--{name}={tmp_path / name}" for name in TRAIN_TO[1:]] + made.places("examples")
        (door,) = run_doors(
            [[*TRAINING, *places, f"--scratch={tmp_path / 'scratch'}", "--nocheck"]], "components.self_labelling.__main__"
        )
        assert door.returncode == 0, door.stderr
        weights = pathlib.Path("Run") / "model.weights.h5"
        assert (tmp_path / "model" / weights).read_bytes() == (made.root / "model" / weights).read_bytes()
        assert (tmp_path / "scratch" / "results.json").exists()
        labels = (path / "labels" / "labels.parquet" for path in (tmp_path, made.root))
        assert len({path.read_bytes() for path in labels}) == 1

    @pytest.mark.slow
    def test_what_was_stopped_goes_on(self, made, tmp_path):
        """A real signal, in the middle of the training."""
        places = [f"--{name}={tmp_path / name}" for name in TRAIN_TO[1:]] + made.places("examples")
        command = [sys.executable, "-m", "components.self_labelling", *TRAINING, "--epochs=6", "--nocheck", *places]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for line in process.stdout:
            if line.startswith("epoch 2/"):
                process.send_signal(signal.SIGTERM)
                break
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 128 + signal.SIGTERM
        assert "The same command continues:\n  python -m components.self_labelling " in out
        assert not (tmp_path / "model" / "made_of.json").exists()
        # what is not finished is no model
        (probe,) = run_doors(
            [[*made.places("examples", "evaluation", "blessing"), f"--model={tmp_path / 'model'}"]],
            "components.linear_probe.__main__",
        )
        is_one_line(probe, "holds no finished model", door="components.linear_probe")
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
        assert "continues at step" in done.stdout
        whole = subprocess.run(
            [*command[:-len(places)], *made.places("examples"), *(f"--{name}={tmp_path / 'whole' / name}" for name in TRAIN_TO[1:])],
            cwd=ROOT, capture_output=True, text=True, check=True, timeout=300,
        )  # fmt: skip
        assert whole.returncode == 0
        weights = [path / "model" / "Run" / "model.weights.h5" for path in (tmp_path, tmp_path / "whole")]
        assert weights[0].read_bytes() == weights[1].read_bytes()


class TestLinearProbe:
    def test_figures_are_those_of_the_training(self, made):
        assert made.probing[0] == 0, made.probing
        found = json.loads((made.root / "evaluation" / "evaluation.json").read_text())
        trained = json.loads((made.root / "metrics" / "results.json").read_text())["trained"]
        assert found["blessed"]
        assert found["model"]["figures"]["knn"] == trained["knn"]
        assert found["model"]["figures"]["linear_probe"] == pytest.approx(trained["linear_probe"], abs=0.005)
        assert found["model"]["figures"]["nmi"] == pytest.approx(np.mean(trained["nmi"]))
        assert [path.name for path in (made.root / "blessing").iterdir() if path.name != "made_of.json"] == ["BLESSED"]
        table = (made.root / "evaluation" / "evaluation.md").read_text()
        assert f"| kNN, k = 10             | {trained['knn']:.3f}   |" in table
        assert table in made.probing[1]
        # the model is as it was
        assert not (made.root / "model" / "Run" / "probes.json").exists()

    @pytest.mark.slow
    def test_verdicts(self, made, tmp_path):
        def places(name: str) -> list[str]:
            return [*made.places("examples", "model"), f"--evaluation={tmp_path / name}", f"--blessing={tmp_path / name}-blessing"]

        verdicts = {
            "high": (["--min_nmi=0.9"], "NOT_BLESSED", "nmi "),
            "nothing": ([], "NOT_BLESSED", "neither a threshold nor a baseline was given"),
            "itself": ([f"--baseline={made.root / 'model'}"], "BLESSED", "## Baseline"),
        }
        doors = run_doors(
            [["--stages=embedding", "--knn=10", *flags, *places(name)] for name, (flags, _, _) in verdicts.items()],
            "components.linear_probe.__main__",
        )
        for door, (name, (_, verdict, words)) in zip(doors, verdicts.items(), strict=True):
            assert door.returncode == 0, door.stderr
            assert (tmp_path / f"{name}-blessing" / verdict).exists()
            assert words in door.stdout
        # another threshold turns the verdict, in the same directory
        again, same = run_doors(
            [["--stages=embedding", "--knn=10", "--min_nmi=0.01", *places("high")]] * 2, "components.linear_probe.__main__"
        )
        assert again.returncode == 0, again.stderr
        assert "unchanged" not in again.stdout
        assert "unchanged since it was evaluated" in same.stdout
        assert sorted(path.name for path in (tmp_path / "high-blessing").iterdir()) == ["BLESSED", "made_of.json"]

    def test_what_it_objects_to(self):
        settings = LinearProbeSettings(examples="e", model="m", evaluation="v", blessing="b", min_knn=0.8, max_drop=0.01)
        model = {"knn": 0.8, "linear_probe": 0.7, "nmi": 0.5}
        assert objections(model, None, settings) == []
        assert objections({**model, "knn": 0.79}, None, settings) == ["knn 0.7900 is below 0.8"]
        assert objections(model, {"knn": 0.8, "linear_probe": 0.709, "nmi": 0.4}, settings) == []
        assert objections(model, {"knn": 0.8, "linear_probe": 0.72, "nmi": 0.4}, settings) == [
            "linear_probe 0.7000 is more than 0.01 below the baseline's 0.7200"
        ]
        figures = {
            "knn": {"10": 0.5, "50": 0.4},
            "linear_probe": {"stem": 0.1, "embedding": 0.6},
            "clustering": {"nmi": [0.2, 0.4]},
        }
        assert headline(figures) == {"knn": 0.5, "linear_probe": 0.6, "nmi": pytest.approx(0.3)}

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"model": ""}, "`model` is missing"),
            ({"min_knn": 1.5}, "min_knn.* must be"),
            ({"max_drop": -0.1}, "max_drop.* must be"),
        ],
    )
    def test_settings(self, changes, message):
        with pytest.raises(ConfigError, match=message):
            LinearProbeSettings(**{"examples": "e", "model": "m", "evaluation": "v", "blessing": "b", **changes})

    @pytest.mark.slow
    def test_examples_that_will_not_do(self, made, tmp_path):
        write_digits(tmp_path / "unknown", classes=False)
        shutil.copytree(made.root / "examples", tmp_path / "cut")
        shutil.rmtree(tmp_path / "cut" / "Split-eval")
        write_digits(tmp_path / "whole", held_out=False)
        places = [*made.places("model"), f"--evaluation={tmp_path / 'e'}", f"--blessing={tmp_path / 'b'}", "--stages=embedding"]
        unknown, cut, whole, foreign = run_doors(
            [
                *([f"--examples={tmp_path / name}", *places] for name in ("unknown", "cut", "whole")),
                [*made.places("examples"), *places, f"--model={tmp_path / 'cut'}"],
            ],
            "components.linear_probe.__main__",
        )
        door = "components.linear_probe"
        is_one_line(unknown, f"--examples={tmp_path / 'unknown'} has no class labels, which probes need", door=door)
        assert not (tmp_path / "e").exists() or (tmp_path / "e" / "evaluation.json").exists()
        is_one_line(cut, "Split-eval/data_tfrecord-00000-of-00002.gz is missing", door=door, status=3)
        assert whole.returncode == 0, whole.stderr  # a share is held out, as everywhere
        is_one_line(foreign, "holds no finished model", door=door)
