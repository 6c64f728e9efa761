"""Realistic transport problems: what networks say about Fashion-MNIST, with the float64 optimum of each; kept in build/benchmarks.

`trained` is a run's network with a linear head that labels itself for a few rounds on the network's features, `warm` the same head a
relabelling later, to be solved from the potentials before it; `hard` is `trained` with 30 % of the clusters made so unlikely that
they win hardly a row; `untrained` a network and a head before their first step. A seed draws the images, the head and its batches.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import zlib
from typing import NamedTuple

import numpy as np
from scipy import special

LAM = 25.0
KINDS = ("trained", "untrained", "hard", "warm")
SIZES = {128: 131_072, 1000: 65_536, 3000: 32_768}
CACHE = pathlib.Path("build/benchmarks")

_ROUNDS, _STEPS, _BATCH, _LEARNING_RATE, _KERNEL_SCALE = 8, 80, 1024, 3e-3, 0.9
# Stands in for the views that a run trains on. With it rows are as sure of their clusters as those of the run's own head.
_DROPOUT = 0.8
_STARVED, _LOWERED_BY = 0.3, 1.5
_OPTIMAL = 1e-8
_BLOCK = 4096


class Problem(NamedTuple):
    kind: str
    num_rows: int
    num_clusters: int
    seed: int
    workdir: str

    @property
    def folder(self) -> pathlib.Path:
        return CACHE / f"{zlib.crc32((pathlib.Path(self.workdir) / 'model.weights.h5').read_bytes()):08x}"

    def file(self, what: str, kind: str = "") -> pathlib.Path:
        return self.folder / f"{kind or self.kind}-{self.num_rows}x{self.num_clusters}-{self.seed}-{what}.npy"

    def log_probs(self) -> np.ndarray:
        """float32 [N, K]."""
        if self.kind != "hard":
            return np.load(self.file("log_probs"))
        log_probs = np.load(self.file("log_probs", "trained"))
        rng = np.random.default_rng(self.seed)
        log_probs[:, rng.permutation(self.num_clusters)[: int(_STARVED * self.num_clusters)]] -= np.float32(_LOWERED_BY)
        return log_probs

    def start(self) -> np.ndarray | None:
        """[K], the potentials of the relabelling before, where there was one."""
        return np.load(self.file("potentials")) if self.kind == "warm" else None

    def optimum(self) -> np.ndarray:
        """float64 [K]."""
        return np.load(self.file("optimum"))


def judge(log_probs: np.ndarray, potentials: np.ndarray) -> tuple[np.ndarray, float]:
    """(labels [N], L1 error of the marginals) in float64, rows normalised."""
    num_rows, num_clusters = log_probs.shape
    labels, mass = np.empty(num_rows, np.int64), np.zeros(num_clusters)
    for start in range(0, num_rows, _BLOCK):
        q, labels[start : start + _BLOCK] = _plan(log_probs[start : start + _BLOCK], potentials)
        mass += q.sum(axis=0)
    return labels, float(np.abs(mass / num_rows - 1 / num_clusters).sum())


def _plan(log_probs: np.ndarray, potentials: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores = LAM * log_probs.astype(np.float64) + potentials
    return special.softmax(scores, axis=1), scores.argmax(axis=1)


def _optimum(log_probs: np.ndarray) -> np.ndarray:
    """Newton's method in float64 on all entries, from where `sela_tf.sinkhorn` ends. What it returns was measured, not believed."""
    import sela_tf

    v = sela_tf.sinkhorn(log_probs, lam=LAM, tolerance=1e-5).potentials.astype(np.float64)
    num_rows, num_clusters = log_probs.shape
    for _ in range(20):
        mass, joint = np.zeros(num_clusters), np.zeros((num_clusters, num_clusters))
        for start in range(0, num_rows, _BLOCK):
            q = _plan(log_probs[start : start + _BLOCK], v)[0]
            mass += q.sum(axis=0) / num_rows
            joint += q.T @ q / num_rows
        if np.abs(mass - 1 / num_clusters).sum() <= _OPTIMAL:
            return v
        # the Hessian's null vector, all ones, is the step that changes nothing
        step = np.linalg.solve(np.diag(mass) - joint + np.outer(mass, mass), 1 / num_clusters - mass)
        v = v + step * min(1.0, 2.0 / np.abs(step).max())
    raise RuntimeError("no float64 optimum")


def run_of(workdir: str) -> str:
    """A finished run's directory; trained now, for a few minutes, where none is named."""
    if workdir:
        return workdir
    path = CACHE / "run"
    if not (path / "results.json").exists():
        command = ["--flagfile=configs/fashion_mnist.cfg", "--epochs=2", "--num_relabellings=4", f"--workdir={path}"]
        subprocess.run([sys.executable, "-m", "sela_tf.train", *command], check=True, stdout=sys.stderr)
    return str(path)


def features(workdir: str, *, trained: bool = True) -> np.ndarray:
    """float32 [131072, D] of the training images, then of these flipped, then of as many as it takes shifted by a pixel."""
    path = Problem("", 0, 0, 0, workdir).folder / f"features-{'trained' if trained else 'untrained'}.npy"
    if path.exists():
        return np.load(path)
    import keras

    import sela_tf
    from sela_tf.data.sources import load_source
    from sela_tf.models.build import cut_at_heads

    model = sela_tf.load_run(workdir)
    if not trained:
        keras.utils.set_random_seed(0)
        model = keras.models.clone_model(model)
    network = cut_at_heads(model)
    images = load_source("idx:/usr/share/datasets/fashion-mnist").train.images
    views = np.concatenate([images, images[:, :, ::-1], np.roll(images[: SIZES[128] - 2 * len(images)], 1, axis=2)])
    # before the first step there are no statistics but the batch's
    parts = [network([part.astype(np.float32)], training=not trained) for part in np.split(views, range(1000, len(views), 1000))]
    values = np.concatenate(parts)
    values = (values - values.mean(axis=0)) / values.std()
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values)
    return values


class Head:
    """A linear head that labels itself."""

    def __init__(self, values: np.ndarray, num_clusters: int, seed: int):
        import keras

        scale = keras.initializers.RandomNormal(stddev=_KERNEL_SCALE / np.sqrt(values.shape[1]), seed=seed)
        self.features, self.num_clusters, self.potentials = values, num_clusters, None
        layers = [keras.layers.Dropout(_DROPOUT, seed=seed), keras.layers.Dense(num_clusters, kernel_initializer=scale)]
        self.model = keras.Sequential([keras.Input([values.shape[1]]), *layers])
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.model.compile(keras.optimizers.Adam(_LEARNING_RATE, beta_2=0.99), loss=loss)
        self._rng = np.random.default_rng(seed)

    def rounds(self, number: int, tolerance: float = 2e-2) -> None:
        """Relabels and takes some steps, so many times."""
        import sela_tf

        for _ in range(number):
            result = sela_tf.sinkhorn(self.log_probs(), lam=LAM, tolerance=tolerance, initial_potentials=self.potentials)
            self.potentials = result.potentials
            for batch in self._rng.integers(0, len(self.features), (_STEPS, _BATCH)):
                self.model.train_on_batch(self.features[batch], result.labels[batch])

    def weights(self) -> tuple[np.ndarray, np.ndarray]:
        """[D, K] and [K]."""
        kernel, bias = (weight.numpy() for weight in self.model.trainable_weights)
        return kernel, bias

    def log_probs(self) -> np.ndarray:
        return log_softmax(self.features, *self.weights())


def log_softmax(values: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """float32 [N, K], block by block."""
    out = np.empty((len(values), len(bias)), np.float32)
    for start in range(0, len(values), _BLOCK):
        out[start : start + _BLOCK] = special.log_softmax(values[start : start + _BLOCK] @ kernel + bias, axis=1)
    return out


def make(problem: Problem, with_optimum: bool) -> None:
    """Writes what is not there yet."""
    kind, num_rows, num_clusters, seed, workdir = problem
    base = problem._replace(kind="trained" if kind == "hard" else kind)
    if not base.file("log_probs").exists():
        values = features(workdir, trained=kind != "untrained")
        values = values[np.random.default_rng(seed).permutation(len(values))[:num_rows]]
        if kind == "untrained":
            # as MultiHead starts
            kernel = np.random.default_rng(seed).normal(scale=0.01, size=(values.shape[1], num_clusters)).astype(np.float32)
            np.save(base.file("log_probs"), log_softmax(values, kernel, np.zeros(num_clusters, np.float32)))
        else:
            head = Head(values, num_clusters, seed)
            head.rounds(_ROUNDS)
            np.save(base.file("log_probs", "trained"), head.log_probs())
            head.rounds(1, tolerance=1e-3)
            np.save(base.file("potentials", "warm"), head.potentials)
            np.save(base.file("log_probs", "warm"), head.log_probs())
    if with_optimum:
        np.save(problem.file("optimum"), _optimum(problem.log_probs()))


def made(kind: str, num_rows: int, num_clusters: int, seed: int, workdir: str, *, with_optimum: bool = True) -> Problem:
    """The problem, made in a process of its own, so that the caller stays small."""
    problem = Problem(kind, num_rows, num_clusters, seed, run_of(workdir))
    if not problem.file("optimum" if with_optimum else "log_probs").exists():
        print(f"making {kind} {num_rows} x {num_clusters}, seed {seed}", file=sys.stderr, flush=True)
        arguments = json.dumps({"problem": problem, "with_optimum": with_optimum})
        environment = {name: value for name, value in os.environ.items() if "NUM_" not in name} | {"TF_CPP_MIN_LOG_LEVEL": "3"}
        subprocess.run([sys.executable, "-m", "benchmarks.problems", arguments], check=True, env=environment)
    return problem


if __name__ == "__main__":
    wanted = json.loads(sys.argv[1])
    make(Problem(*wanted["problem"]), wanted["with_optimum"])
