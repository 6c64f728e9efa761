"""One cell of benchmarks/sinkhorn.py: a process in which one solver solves one problem, and who starts, follows and ends it."""

from __future__ import annotations

import argparse
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

import numpy as np

from benchmarks.measuring import PeakMemory, environment, pin
from benchmarks.problems import Problem, judge
from benchmarks.sinkhorn_peers import SOLVERS, say

_LOADING_LIMIT = 600.0

Cell = dict[str, Any]
"""What a process said last: {"seconds": …, "passes": …, …}, {"cut": limit, "progress": [passes, seconds, error]} or {"failed": why}."""


def measure(method: str, problem: Problem, limit: float) -> Cell:
    """Starts the process, follows it, and ends it at the limit."""
    num_threads = 2 if method.endswith("2 threads") else 1
    command = [sys.executable, "-m", "benchmarks.cells", method, json.dumps(problem), str(num_threads)]
    with tempfile.TemporaryFile("w+") as errors:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
        process = subprocess.Popen(command, text=True, env=environment(num_threads), **pipes)
        lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=lambda: [*map(lines.put, process.stdout), lines.put(None)], daemon=True).start()
        cell: Cell = {}
        clock, deadline, iterations = 0.0, time.monotonic() + _LOADING_LIMIT, 0
        try:
            while "seconds" not in cell:
                line = lines.get(timeout=max(0.0, deadline - time.monotonic()))
                if line is None:
                    errors.seek(0)
                    return {"failed": (errors.read().strip().splitlines() or [f"exit status {process.wait()}"])[-1]}
                if line.startswith("{"):
                    cell.update(json.loads(line))
                elif line.startswith(("i = ", "iter = ")):  # RegOT is at its next iteration
                    iterations += 1
                    cell["progress"] = [iterations, time.monotonic() - clock, np.nan]
                if cell.pop("ready", False):
                    process.stdin.write("go\n")
                    process.stdin.flush()
                if cell.pop("restart", False):
                    clock, iterations = time.monotonic(), 0
                    deadline = clock + limit
                if cell.pop("solved", False):
                    deadline = time.monotonic() + _LOADING_LIMIT
        except queue.Empty:
            return {**cell, "cut": limit} if clock else {"failed": f"not ready after {_LOADING_LIMIT:.0f} s"}
        finally:
            process.kill()
            process.wait()
    return cell


def main(method: str, problem: Problem) -> None:
    """Says `ready`, waits for a line, solves, says what came of it."""
    log_probs, start = problem.log_probs(), problem.start()
    solve = SOLVERS[method](log_probs, start)
    say(ready=True)
    sys.stdin.readline()
    memory = PeakMemory()
    say(restart=True)
    clock, processor = time.perf_counter(), time.process_time()
    solution = solve()
    seconds, busy = time.perf_counter() - clock, time.process_time() - processor
    peak = memory.megabytes()
    say(solved=True)
    labels, error = judge(log_probs, np.asarray(solution.potentials, np.float64))
    best = judge(log_probs, problem.optimum())[0]
    say(
        seconds=seconds if solution.seconds is None else solution.seconds,
        busy=busy / seconds,
        passes=float(solution.passes),
        iterations=float(solution.num_iterations or 0),
        bytes=float(solution.bytes_read),
        megabytes=peak,
        agreement=float(np.mean((labels if solution.labels is None else solution.labels) == best)),
        error=error,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="One method, one problem.")
    parser.add_argument("method", choices=SOLVERS)
    parser.add_argument("problem", type=lambda text: Problem(*json.loads(text)))
    parser.add_argument("num_threads", type=int)
    arguments = parser.parse_args()
    pin(arguments.num_threads)
    main(arguments.method, arguments.problem)
