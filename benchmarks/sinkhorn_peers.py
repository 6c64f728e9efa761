"""The solvers that benchmarks/sinkhorn.py compares.

Every solver is given what it likes best before the clock starts (its dtype and memory order, compiled code), and costs
-log softmax(lam * log p + v0) / lam, v0 being the start: where they begin every row is normalised, so that float32 does not
underflow in the row's best entry, and a warm start needs no door of the peer's own. The clock stops when the solver returns;
labels are taken from the potentials afterwards, but for `sela_tf` and the reference, which give labels themselves.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from benchmarks.problems import LAM, judge

TOLERANCE = 1e-3


class Solution(NamedTuple):
    potentials: np.ndarray
    """[K]."""
    passes: float
    """Iterations of the peer, or for sela_tf how often all rows were read: exact and stored passes, lists of candidates, labels."""
    bytes_read: float
    """Of N x K arrays, in all passes."""
    labels: np.ndarray | None = None
    """[N], where the solver gives them."""
    seconds: float | None = None
    """By the solver's own clock, where that is kinder to it."""
    num_iterations: int | None = None
    """What sela_tf itself says, which counts neither labels nor candidates nor shares of the rows."""


Solver = Callable[[], Solution]


def say(**event: Any) -> None:
    print(json.dumps(event), flush=True)


class Progress:
    """What is known of a solver that is cut before its end."""

    def __init__(self):
        self.start = time.perf_counter()

    def __call__(self, passes: float, error: float) -> None:
        say(progress=[passes, time.perf_counter() - self.start, float(error)])


def costs(log_probs: np.ndarray, start: np.ndarray | None, dtype: type, order: str = "C") -> np.ndarray:
    """[N, K], at least 0."""
    out = np.empty(log_probs.shape, dtype, order)
    for first in range(0, len(out), 4096):
        scores = LAM * log_probs[first : first + 4096].astype(np.float64) + (0 if start is None else start)
        out[first : first + 4096] = special.log_softmax(scores, axis=1) / -LAM
    return out


def reference(log_probs: np.ndarray, start: np.ndarray | None, *, to_tolerance: bool) -> Solver:
    """The authors' algorithm in NumPy, float64: sum |beta / beta' - 1| < 0.1 at every 10th iteration; or L1 <= 1e-3 there."""
    num_rows, num_clusters = log_probs.shape
    probs = np.exp(log_probs.astype(np.float64))
    beta = np.full(num_rows, 1 / num_rows)
    if start is not None:  # beta of the relabelling before, as it would be on the new rows
        beta = np.concatenate([1 / (part**LAM @ np.exp(start)) for part in np.split(probs, range(4096, num_rows, 4096))]) / num_rows

    def solve() -> Solution:
        nonlocal probs, beta
        progress, passes, done = Progress(), 0, False
        alpha = np.ones(num_clusters)
        probs **= LAM
        while not done:
            mass = beta @ probs
            error = np.abs(alpha * mass - 1 / num_clusters).sum() if passes else 2.0
            if to_tolerance and passes % 10 == 0 and not error > TOLERANCE:  # or NaN
                break
            alpha = (1 / num_clusters) / mass
            new = (1 / num_rows) / (probs @ alpha)
            if passes % 10 == 0:
                done = not to_tolerance and np.nansum(np.abs(beta / new - 1)) < 0.1
                progress(passes, error)
            beta = new
            passes += 1
        probs *= alpha
        return Solution(np.log(alpha), passes, 2 * passes * probs.nbytes, probs.argmax(axis=1))

    return solve


def pot(log_probs: np.ndarray, start: np.ndarray | None, *, method: str, dtype: type) -> Solver:
    """Python Optimal Transport; its own check, at its own intervals, but in the L1 norm instead of L2.

    `tau`: with its default of 1000 sinkhorn_stabilized absorbs in every iteration of N > 1000 rows, and then never sees an error below 1.
    """
    import ot

    cost = costs(log_probs, start, dtype)
    num_rows, num_clusters = cost.shape
    rows, columns = np.full(num_rows, 1 / num_rows, dtype), np.full(num_clusters, 1 / num_clusters, dtype)
    interval = 20 if method == "sinkhorn_stabilized" else 10

    def solve() -> Solution:
        progress, checks = Progress(), iter(range(10**9))

        def norm(_: Any, difference: np.ndarray, *__: Any, **___: Any) -> float:
            error = float(np.abs(difference).sum())
            progress(interval * next(checks) + 1, error)
            return error

        ot.backend.NumpyBackend.norm = norm
        _, log = ot.sinkhorn(
            rows,
            columns,
            cost,
            1 / LAM,
            method=method,
            numItermax=10**7,
            stopThr=TOLERANCE,
            log=True,
            print_period=interval,
            tau=1e3 * num_rows,
        )
        v = log.get("logv", log.get("log_v"))
        v = np.log(log["v"]) if v is None else v
        passes = log.get("niter", log.get("n_iter")) + 1
        return Solution(v + (0 if start is None else start), passes, 2 * passes * cost.nbytes)

    return solve


def ott(log_probs: np.ndarray, start: np.ndarray | None, *, lse_mode: bool) -> Solver:
    """ott-jax, float32, threshold 1e-3 in its L1 norm, looked at every 10th iteration; compiled beforehand.

    Anderson's memory and ridge are the best of those tried; with the default ridge of 1e-2 it is slower than none. Momentum took more
    iterations.
    """
    import jax
    from ott.geometry.geometry import Geometry
    from ott.problems.linear.linear_problem import LinearProblem
    from ott.solvers.linear.acceleration import AndersonAcceleration
    from ott.solvers.linear.sinkhorn import Sinkhorn

    cost = jax.device_put(costs(log_probs, start, np.float32))
    anderson = AndersonAcceleration(memory=5, ridge_identity=1e-5)

    def run(cost: jax.Array, threshold: float) -> tuple[jax.Array, jax.Array]:
        geometry = (
            Geometry(cost, epsilon=1 / LAM) if lse_mode else Geometry(kernel_matrix=jax.numpy.exp(-LAM * cost), epsilon=1 / LAM)
        )
        solver = Sinkhorn(lse_mode, threshold=threshold, max_iterations=20_000, anderson=anderson)
        out = solver(LinearProblem(geometry))
        return out.g, out.n_iters

    compiled = jax.jit(run).lower(cost, TOLERANCE).compile()
    progress = Progress()
    jax.block_until_ready(compiled(cost, np.inf))  # ends at the first look
    progress(10, np.nan)

    def solve() -> Solution:
        g, passes = jax.block_until_ready(compiled(cost, TOLERANCE))
        v = LAM * np.asarray(g, np.float64)
        return Solution(v + (0 if start is None else start), int(passes), 2 * int(passes) * cost.nbytes)

    return solve


def regot(log_probs: np.ndarray, start: np.ndarray | None, *, method: str) -> Solver:
    """RegOT, C++ float64, by its own clock. It stops at an L2 norm of all gradients: the first of a falling sequence with L1 <= 1e-3."""
    import regot

    cost = costs(log_probs, start, np.float64, "F")
    num_rows, num_clusters = cost.shape
    rows, columns = np.full(num_rows, 1 / num_rows), np.full(num_clusters, 1 / num_clusters)

    def solve() -> Solution:
        tolerance = TOLERANCE / np.sqrt(num_clusters)
        while True:
            say(restart=True)
            # one line an iteration, which whoever reads this process' output counts
            result = getattr(regot, method)(cost, rows, columns, 1 / LAM, tol=tolerance, max_iter=10**6, verbose=1)
            v = LAM * np.append(result.dual[num_rows:], 0) + (0 if start is None else start)
            if judge(log_probs, v)[1] <= TOLERANCE or tolerance < 1e-8:
                return Solution(v, result.niter, np.nan, seconds=result.run_times[-1] / 1000)
            result, tolerance = None, tolerance / 4  # lets go of its plan

    return solve


def swav(log_probs: np.ndarray, start: np.ndarray | None) -> Solver:
    """The loop of SwAV's code in PyTorch, float32; its sums over rows are the error, looked at every 10th iteration."""
    import torch

    torch.set_num_threads(1)
    cost = torch.from_numpy(costs(log_probs, start, np.float32))

    def solve() -> Solution:
        progress, passes = Progress(), 0
        q = torch.exp(-LAM * cost).t()
        num_clusters, num_rows = q.shape
        q /= q.sum()
        log_alpha = torch.zeros(num_clusters, dtype=torch.float64)
        while True:
            mass = q.sum(dim=1, keepdim=True)
            if passes % 10 == 0:
                error = float((mass - 1 / num_clusters).abs().sum()) if passes else 2.0
                progress(passes, error)
                if not error > TOLERANCE:  # or NaN
                    break
            log_alpha -= mass[:, 0].double().log()
            q /= mass
            q /= num_clusters
            q /= q.sum(dim=0, keepdim=True)
            q /= num_rows
            passes += 1
        # read by two sums and four divisions, written by four
        return Solution(log_alpha.numpy() + (0 if start is None else start), passes, 6 * passes * q.nbytes)

    return solve


class Reads:
    """Counts what sela_tf's passes read."""

    def __init__(self):
        from sela_tf.transport.rows import Rows
        from sela_tf.transport.stored_rows import StoredRows

        self.entries = self.bytes = 0.0
        for owner, name in (
            (Rows, "measure"),
            (Rows, "absorb"),
            (Rows, "labels"),
            (Rows, "measure_and_list"),
            (Rows, "measure_and_store"),
            (Rows, "measure_and_label"),
            (StoredRows, "measure"),
        ):
            setattr(owner, name, self._counted(getattr(owner, name)))

    def _counted(self, function: Callable) -> Callable:
        def call(rows: Any, *args: Any, **kwargs: Any) -> Any:
            if hasattr(rows, "num_rows"):
                entries, size = rows.num_rows * rows.num_clusters, 4
            else:
                kernels = [chunk[0] for chunk in rows._chunks]
                entries, size = sum(int(np.prod(kernel.shape)) for kernel in kernels), kernels[0].dtype.size
            self.entries, self.bytes = self.entries + entries, self.bytes + size * entries
            return function(rows, *args, **kwargs)

        return call


def sela(log_probs: np.ndarray, start: np.ndarray | None, *, num_threads: int) -> Solver:
    """sela_tf.sinkhorn as it is called by default; solved once beforehand, to compile."""
    import sela_tf

    reads = Reads()
    run = functools.partial(sela_tf.sinkhorn, log_probs, lam=LAM, initial_potentials=start, num_threads=num_threads)
    run()

    def solve() -> Solution:
        reads.entries = reads.bytes = 0
        result = run()
        passes = reads.entries / log_probs.size
        return Solution(result.potentials, passes, reads.bytes, result.labels, num_iterations=result.num_iterations)

    return solve


REFERENCE = "reference"
SOLVERS: dict[str, Callable[..., Solver]] = {
    REFERENCE: lambda *problem: reference(*problem, to_tolerance=False),
    "reference to L1": lambda *problem: reference(*problem, to_tolerance=True),
    "POT sinkhorn float32": lambda *problem: pot(*problem, method="sinkhorn", dtype=np.float32),
    "POT sinkhorn float64": lambda *problem: pot(*problem, method="sinkhorn", dtype=np.float64),
    "POT sinkhorn_log": lambda *problem: pot(*problem, method="sinkhorn_log", dtype=np.float32),
    "POT sinkhorn_stabilized": lambda *problem: pot(*problem, method="sinkhorn_stabilized", dtype=np.float32),
    "ott lse, Anderson": lambda *problem: ott(*problem, lse_mode=True),
    "ott kernel, Anderson": lambda *problem: ott(*problem, lse_mode=False),
    "RegOT sinkhorn_ssns": lambda *problem: regot(*problem, method="sinkhorn_ssns"),
    "RegOT sinkhorn_splr": lambda *problem: regot(*problem, method="sinkhorn_splr"),
    "SwAV loop, PyTorch": swav,
    "sela_tf": lambda *problem: sela(*problem, num_threads=1),
    "sela_tf, 2 threads": lambda *problem: sela(*problem, num_threads=2),
}
PEERS = tuple(name for name in SOLVERS if name.startswith(("POT", "ott", "RegOT")))
