"""Planted faults among the first images shown: `python -m benchmarks.planted_faults --results=FILE.jsonl`, sets and draws.

In each set 50 faults are planted: images that are moved into another class, near-duplicates (compressed, resized, cropped, shifted by a
pixel, brightened, or the same) and foreign images. A network is trained on the planted set by the default command, and the images are ranked
by `sela_tf.evaluation.review`. A row (a set and a draw) is made once. The ranking was found on draw 0, which counts for no goal.

cleanlab and cleanvision rank the same images if `--peers_python` names a Python that has them, see `peers.py`. `--table` prints the table,
`--goals` the goal as reached or missed. The sets are those of `benchmarks.own_images`, which makes them.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

from benchmarks.own_images.jobs import found, read_rows, tried_flags
from benchmarks.planted_faults.planting import SETS
from benchmarks.planted_faults.rows import make_row, prepare
from benchmarks.planted_faults.table import goals, pairs_table, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sets", type=lambda text: text.split(","), default=list(SETS), help=f"of {', '.join(SETS)}; by default all"
    )
    parser.add_argument("--draws", type=lambda text: [*map(int, text.split(","))], default=[0, 1, 2])
    parser.add_argument("--try", dest="tried", default="", help="settings of the training, as minutes=3,image_size=32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=pathlib.Path, default=pathlib.Path("build/planted_faults.jsonl"))
    parser.add_argument("--runs_dir", type=pathlib.Path, default=pathlib.Path("build/planted_faults"), help="keeps the runs")
    parser.add_argument("--sets_dir", type=pathlib.Path, default=pathlib.Path("~/.cache/sela_tf_own_images"))
    parser.add_argument("--peers_python", default="", help="a Python that has cleanlab and cleanvision")
    parser.add_argument("--table", action="store_true", help="print the table of the rows that are there")
    parser.add_argument("--goals", action="store_true", help="print the goal as reached or missed, and end with 1 on a miss")
    options = parser.parse_args()
    if unknown := sorted({*options.sets} - {*SETS}):
        parser.error(f"there is no {', '.join(unknown)}")
    if options.table or options.goals:
        rows = [row for row in read_rows(options.results) if row["set"] in options.sets]
        if options.table:
            print(table(rows))
            print(pairs_table(rows))
        sys.exit(bool(goals(rows)) if options.goals else 0)
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for draw in options.draws:
        for name in options.sets:
            if found(read_rows(options.results), set=name, draw=draw):
                continue
            directory = options.runs_dir.absolute() / f"{name}-{draw}"
            prepare(name, draw, directory, options.sets_dir.expanduser(), tried_flags(options.tried), options.threads)
            row = make_row(name, draw, directory, options.peers_python, options.threads)
            with options.results.open("a") as file:
                file.write(json.dumps({**row, "settings": options.tried}) + "\n")
            print(name, draw, row["found"], flush=True)


if __name__ == "__main__":
    main()
