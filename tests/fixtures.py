"""Fixtures and helpers of all tests. TensorFlow is imported by the tests, with its start-up lines off; not by the process that only hands them out."""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
from disks import small_disk

if TYPE_CHECKING:
    import tensorflow as tf

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background has them ignore Ctrl-C, and with them the commands that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = pathlib.Path(__file__).parent.parent
FASHION_MNIST = pathlib.Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture(autouse=True)
def op_determinism_is_left_off():
    """A run turns it on for its process, in which Keras then compiles no other test's model with XLA."""
    yield
    from tensorflow.python.framework import config as tf_config

    # the public interface can only turn it on
    tf_config.disable_op_determinism()


@pytest.fixture(scope="session", autouse=True)
def caches_of_tests_are_apart(tmp_path_factory):
    """Caches lie in a directory of the test session, also those of commands that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def passes(monkeypatch) -> list[tf.data.Options]:
    """The options of the data sets that the test has gone through."""
    import tensorflow as tf

    seen: list[tf.data.Options] = []
    iterate = tf.data.Dataset.__iter__
    monkeypatch.setattr(tf.data.Dataset, "__iter__", lambda batches: seen.append(batches.options()) or iterate(batches))
    return seen


@pytest.fixture(scope="session")
def fashion_mnist() -> pathlib.Path:
    """Debian's Fashion-MNIST. A laptop may lack it; CI may not."""
    if not FASHION_MNIST.is_dir():
        reason = f"Fashion-MNIST is not in {FASHION_MNIST}: make system-deps"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return FASHION_MNIST


@pytest.fixture
def disk(tmp_path) -> Iterator[pathlib.Path]:
    """A directory that `disks.full` fills."""
    with small_disk(tmp_path / "disk", 1024) as directory:
        yield directory


@pytest.fixture
def values(rng) -> np.ndarray:
    """The vectors of a small model of a user's own, float32 [96, 6]."""
    return rng.normal(size=(96, 6)).astype(np.float32)


class Door(NamedTuple):
    """The outcome of a command: its exit status and what it printed."""

    returncode: int
    stdout: str
    stderr: str


SMALL = (
    "--dataset=digits", "--eval_fraction=0.25", "--backbone=resnet8", "--width=8", "--num_heads=2", "--num_clusters=16", "--batch_size=64",
    "--hidden_units=0", "--flip_probability=0", "--crop_scale=0.5", "--hue=0", "--epochs=2", "--learning_rate=0.1", "--lr_schedule=step",
    "--num_relabellings=4", "--log_every_steps=1", "--monitor_epochs=1", "--weight_decay=1e-5", "--norotation",
    "--noreport",
)  # fmt: skip
"""A run of seconds."""


def made_once(tmp_path_factory, name: str, make: Callable[[pathlib.Path], Any]) -> tuple[pathlib.Path, Any]:
    """A directory that `make` fills, and the JSON that it returns: once in a session of several processes, which share it."""
    base = tmp_path_factory.getbasetemp()
    directory = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / f"{name}-once"
    directory.mkdir(exist_ok=True)
    with (directory / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made, said = directory / "made", directory / "said.json"
        if not said.exists():
            made.mkdir(exist_ok=True)
            said.write_text(json.dumps(make(made)))
    return made, json.loads(said.read_text())


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> tuple[pathlib.Path, subprocess.CompletedProcess[str]]:
    """A whole small run, which nobody changes."""

    def run(directory: pathlib.Path) -> list:
        process = run_door(*SMALL, "--report", f"--workdir={directory / 'digits'}")
        return [process.args, process.returncode, process.stdout, process.stderr]

    directory, said = made_once(tmp_path_factory, "run", run)
    return directory / "digits", subprocess.CompletedProcess(*said)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> pathlib.Path:
    """TFDS data sets prepared by another process, as a user's own would be."""

    def prepare(directory: pathlib.Path) -> None:
        script = ROOT / "tests" / "data" / "tfds_builders.py"  # TFDS looks for the file of a builder's class
        subprocess.run([sys.executable, script, directory], check=True, capture_output=True, timeout=300)

    return made_once(tmp_path_factory, "tfds", prepare)[0]


_DOORS = """
import contextlib, importlib, io, json, sys
for module, *argv in json.load(sys.stdin):
    main = importlib.import_module(module).main
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([module, *argv])
    print(json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


def run_doors(commands: Sequence[Sequence[str]], module: str = "sela_tf.train") -> list[Door]:
    """Several commands of a module, one after another, in one process of their own."""
    return run_modules([[module, *command] for command in commands])


def run_modules(commands: Sequence[Sequence[str]], *, cwd: pathlib.Path = ROOT, path: pathlib.Path | None = None) -> list[Door]:
    """Commands that begin with their module, one after another, in one process of their own: TensorFlow is loaded once.

    Modules are those of the checkout, and those in the directory `path`.
    """
    process = subprocess.run(
        [sys.executable, "-c", _DOORS],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, [ROOT, *([path] if path else [])]))},
        timeout=600,
        check=False,
    )
    doors = [Door(*json.loads(line)) for line in process.stdout.splitlines()]
    assert len(doors) == len(commands), process.stderr
    return doors


def run_here(commands: Sequence[Sequence[str]], module: str = "sela_tf.train") -> list[Door]:
    """Several commands of a module in this process, where TensorFlow is loaded already: for commands that refuse or have little to do."""
    main, before = importlib.import_module(module).main, signal.getsignal(signal.SIGTERM)
    doors = []
    try:
        for argv in commands:
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = main([module, *argv])
            doors.append(Door(code, out.getvalue(), err.getvalue()))
    finally:
        signal.signal(signal.SIGTERM, before)
    return doors


def run_door(*args: str, **kwargs) -> subprocess.CompletedProcess[str]:
    """Runs `python -m sela_tf.train` as a user's shell would."""
    command = [sys.executable, "-m", "sela_tf.train", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600, check=False, **kwargs)


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process of its own, with environment variables of its own and warnings of the library as errors."""
    return subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code],
        capture_output=True, text=True, cwd=ROOT, timeout=300, check=False, env={**os.environ, **environment},
    )  # fmt: skip


def rows(workdir: pathlib.Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (workdir / name).read_text().splitlines()]


def is_one_line(
    process: Door | subprocess.CompletedProcess[str], message: str, *, door: str = "sela_tf.train", status: int = 2
) -> None:
    """A command ended with `status`, by default that of bad flags or settings, and one line that holds `message`."""
    assert process.returncode == status, process
    lines = process.stderr.splitlines()
    assert len(lines) == 1, process.stderr
    assert lines[0].startswith(f"{door}: error: ")
    assert message in lines[0]
