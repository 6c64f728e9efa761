"""How fast is the transport? `python -m benchmarks.sinkhorn`: sela_tf beside its peers, measured in the same run.

Each cell is a process of its own on one processor (on two for the row that says so). Loading, compiling, and labels that a peer does
not give are not on the clock. All are asked for a marginal L1 error of 1e-3, the row `reference` for its own stop; how they are asked
stands in benchmarks/sinkhorn_peers.py. A cell of more than --limit seconds is cut, and its other seeds are left out. Medians over
seeds. Passes of sela_tf are all its reads of N x K, in brackets its `num_iterations`. Memory is what a solve takes beyond its input.
`*` marks cells that had less than 90 % of their processor. With --growth, --features, --threads or --rounding, that table instead.
Nothing else should run on the machine meanwhile, and no source be edited.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterable

import numpy as np

from benchmarks.cells import Cell, measure
from benchmarks.measuring import MB, bandwidth, environment, median, print_goals
from benchmarks.problems import CACHE, KINDS, SIZES, made
from benchmarks.sinkhorn_goals import Found, goals, is_solved, times_best_peer, times_reference
from benchmarks.sinkhorn_peers import REFERENCE, SOLVERS
from benchmarks.sinkhorn_tables import TABLES
from sela_tf.reporting.markdown import markdown

_BUSY = 0.9
HEADER = ["problem", "K", "method", "passes", "seconds", "ms a pass", "bandwidth", "peak MB", "agree %", "L1 error"]
HEADER += ["x reference", "x best peer"]


def described(cell: Cell, matrix_bytes: float, rate: float) -> list[str]:
    """From passes to L1 error."""
    if "failed" in cell:
        return [*["-"] * 6, f"failed: {cell['failed'][:80]}"]
    if "cut" in cell:
        passes, seconds, error = cell.get("progress", [0, 0, np.nan])
        each = f"{1000 * seconds / passes:.1f}" if passes else "-"
        reached = f"{error:.1e} when cut" if error == error else "-"
        return [f"{passes:.0f} at least", f"> {cell['cut']:.0f} s", each, *["-"] * 3, reached]
    seconds, passes = cell["seconds"], cell["passes"]
    return [
        f"{passes:.1f}".removesuffix(".0") + (f" ({cell['iterations']:.0f})" if cell["iterations"] else ""),
        f"{seconds:.3g}" + ("*" if cell["busy"] < _BUSY else ""),
        f"{1000 * seconds / passes:.1f}" if passes else "-",
        f"{100 * cell['bytes'] / seconds / rate:.0f} %" if cell["bytes"] == cell["bytes"] else "-",
        f"{cell['megabytes']:.0f} ({cell['megabytes'] * MB / matrix_bytes:.2f}x)",
        f"{100 * cell['agreement']:.3f}",
        f"{cell['error']:.1e}" + ("" if is_solved(cell) else " missed"),
    ]


def peers_table(options: argparse.Namespace, medians: Found) -> Iterable[str]:
    """The table, again after each problem, whose median cells go to `medians`."""
    rows: list[list[str]] = []
    known = {}
    if options.resume and options.cells.exists():
        known = {tuple(key): cell for key, cell in map(json.loads, options.cells.read_text().splitlines())}
    options.cells.parent.mkdir(parents=True, exist_ok=True)
    for num_clusters in options.clusters:
        num_rows = SIZES[num_clusters] // (8 if options.quick else 1)
        matrix_bytes = 4.0 * num_rows * num_clusters
        rate = bandwidth(int(matrix_bytes))
        for kind in options.kinds:
            found: dict[str, Cell] = {}
            for method in options.methods:
                limit = options.reference_limit if method == REFERENCE else options.limit
                cells: list[Cell] = []
                for seed in range(options.seeds):
                    key = (method, kind, num_rows, num_clusters, seed)
                    problem = made(*key[1:], options.workdir)
                    print(f"{method}: {kind} {num_rows} x {num_clusters}, seed {seed}", end=" ", file=sys.stderr, flush=True)
                    cells.append(known.get(key) or measure(method, problem, limit))
                    print(
                        {name: value for name, value in cells[-1].items() if name in ("seconds", "cut", "failed")}, file=sys.stderr
                    )
                    if key not in known:
                        with options.cells.open("a") as file:
                            file.write(json.dumps([key, cells[-1]]) + "\n")
                    if "seconds" not in cells[-1]:
                        break
                found[method] = median(cells)
                if "busy" in found[method]:
                    found[method]["busy"] = min(cell["busy"] for cell in cells)
            medians[kind, num_clusters] = found
            for method, cell in found.items():
                compared = [str(times(found, method) or "") for times in (times_reference, times_best_peer)]
                rows.append([kind, str(num_clusters), method, *described(cell, matrix_bytes, rate), *compared])
            yield markdown(HEADER, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", default="", help="a finished run on Fashion-MNIST; by default one is trained, in minutes")
    parser.add_argument("--kinds", type=lambda text: text.split(","), default=list(KINDS), help=f"of {','.join(KINDS)}")
    parser.add_argument(
        "--clusters", type=lambda text: [*map(int, text.split(","))], default=list(SIZES), help=f"of {','.join(map(str, SIZES))}"
    )
    parser.add_argument(
        "--methods", type=lambda text: text.split(","), default=[], help="beginnings of names, such as sela_tf,reference,POT"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=float, default=60.0, help="seconds")
    parser.add_argument("--reference_limit", type=float, default=60.0, help="seconds, of the reference to its own stop")
    parser.add_argument("--quick", action="store_true", help="an eighth of the rows and one seed")
    parser.add_argument("--cells", type=pathlib.Path, default=CACHE / "cells.jsonl", help="every cell is added here")
    parser.add_argument("--resume", action="store_true", help="do not measure again what --cells has")
    parser.add_argument("--output", type=pathlib.Path, help="a Markdown file for the table")
    parser.add_argument(
        "--goals", action="store_true", help="print goals and what was reached, and end with 1 where one was missed"
    )
    for name, function in TABLES.items():
        parser.add_argument(f"--{name}", action="store_true", help=function.__doc__)
    options = parser.parse_args()
    os.environ.update(environment(1))
    options.seeds = 1 if options.quick else options.seeds
    wanted = options.methods or list(SOLVERS)
    options.methods = [name for name in SOLVERS if any(name.lower().startswith(begin.lower()) for begin in wanted)]
    table, medians = "", Found()
    for table in other_table(options) or peers_table(options, medians):
        if options.output:
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(table + "\n")
    print(table)
    if options.goals:
        sys.exit(print_goals(goals(medians)))


def other_table(options: argparse.Namespace) -> list[str]:
    """The table that is asked for instead, from a process of its own."""
    names = [name for name in TABLES if getattr(options, name)]
    arguments = [f"--{name}={getattr(options, name)}" for name in ("workdir", "seeds", "reference_limit")]
    command = [sys.executable, "-m", "benchmarks.sinkhorn_tables", *arguments, *["--quick"] * options.quick]
    run = functools.partial(subprocess.run, check=True, stdout=subprocess.PIPE, text=True, env=environment(os.cpu_count() or 1))
    return [run([*command, name]).stdout.rstrip() for name in names]


if __name__ == "__main__":
    main()
