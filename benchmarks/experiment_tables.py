"""The tables of docs/results.md, from the rows in docs/results/rows."""

from __future__ import annotations

import json
import pathlib
import re
from typing import Any

import numpy as np

from benchmarks.experiment_rows import ROWS_OF, SEEDS, TABLES, TRANSFER, Peer, Row
from sela_tf.reporting.markdown import markdown
from sela_tf.reporting.metric_labels import CLUSTER_LABELS
from sela_tf.reporting.probe_tables import mean_and_interval

RESULTS = pathlib.Path(__file__).parent.parent / "docs" / "results"
PAGE, ROWS = RESULTS.with_suffix(".md"), RESULTS / "rows"
REGULARISATION = RESULTS / "regularisation.json"
"""What benchmarks/regularisation.py measured, by seed."""


def kept(name: str) -> dict[int, dict[str, Any]]:
    """The finished rows by seed."""
    files = {seed: ROWS / f"{name}-{seed}.json" for seed in SEEDS}
    return {seed: json.loads(file.read_text()) for seed, file in files.items() if file.exists()}


def figures(row: dict[str, Any], column: str) -> dict[str, float]:
    """All numbers of the trained or untrained network that tables show; of several heads the mean."""
    probes = row["probes"][column]
    found = {f"kNN, k = {k}": value for k, value in probes["knn"].items()}
    found |= {f"linear, {stage}": value for stage, value in probes["linear_probe"].items()}
    if column in row:
        found |= {CLUSTER_LABELS[name]: float(np.mean(row[column][name])) for name in ("nmi", "ami", "ari")}
    for clusters in probes.get("kmeans", {}).values():
        found["NMI, k-means"] = clusters["nmi"][0]
    if column == "trained":
        found["training, s"] = row["course"][-1]["training_seconds"]
    if column == "trained" and "training_labels" in row:
        found["NMI, training labels"] = float(np.mean(row["training_labels"]["nmi"]))
        found["clusters used"] = float(np.mean(row["training_labels"]["clusters_used"]))
    if column == "trained" and row.get("relabellings"):
        last = row["relabellings"][-1]
        found["information, nats"] = last["information"]
        found["changed at the end, %"] = 100 * last["changed"]
        found["smallest cluster"], found["largest cluster"] = last["smallest_cluster"], last["largest_cluster"]
        iterations = [one["num_iterations"] for one in row["relabellings"]]
        if None not in iterations:
            found["iterations"] = float(np.mean(iterations))
    return found


def cell(name: str, values: list[float]) -> str:
    """Mean and interval; of counts and seconds the mean."""
    if name in ("clusters used", "training, s", "smallest cluster", "largest cluster"):
        return f"{np.mean(values):.0f}"
    if name in ("iterations", "changed at the end, %"):
        return f"{np.mean(values):.1f}"
    return mean_and_interval(values)


def departure(row: Row | Peer, base: Row) -> str:
    """What flags, which config and which program it has that `base` has not."""
    assert isinstance(row, Row)
    program = [f"`{' '.join(row.program)}`"] if row.program != base.program else []
    config = [f"{row.config}.cfg"] if row.config != base.config else []
    changes = [change for change in row.changes if change not in base.changes]
    return " ".join([*program, *config, *(f"`{change}`" for change in changes)]) or "nothing"


def table(name: str) -> str:
    """One of TABLES."""
    wanted, lines = TABLES[name], []
    for row in wanted.rows:
        rows = list(kept(row).values())
        for column in ("trained", "untrained") if wanted.untrained else ("trained",):
            if not rows or column not in rows[0]["probes"]:
                continue
            numbers = [figures(one, column) for one in rows]
            shared = [key for key in numbers[0] if all(key in one for one in numbers)]
            cells = {key: cell(key, [one[key] for one in numbers]) for key in shared}
            title = f"{row}, {column}" if wanted.untrained else row
            if wanted.base:
                title = departure(ROWS_OF[row], wanted.base)
            lines.append({"row": title, "seeds": str(len(rows)), **cells})
    if not lines:
        return "not run yet"
    there = list(dict.fromkeys(key for line in lines for key in line))
    header = ["row", "seeds"]
    for column in wanted.columns:
        found = [column] if column in there else [key for key in there if key.startswith(f"{column},")]
        header += [key for key in found if key not in header]
    return markdown(header, [[line.get(key, "") for key in header] for line in lines])


def transfer_table() -> str:
    """When each network's kNN, as the monitor has it, reaches the source's last."""
    lines = []
    sources = kept(TRANSFER[0])
    for row in TRANSFER:
        for seed, one in kept(row).items():
            if seed not in sources:
                continue
            goal = sources[seed]["course"][-1]["knn"]
            reached = next((point for point in one["course"] if point["knn"] >= goal), None)
            at = [str(reached["epoch"]), f"{reached['training_seconds']:.0f}"] if reached else ["not reached", ""]
            course = " ".join(f"{point['knn']:.3f}" for point in one["course"])
            lines.append([row, str(seed), course, f"{goal:.3f}", *at])
    return markdown(
        ["row", "seed", "kNN after each epoch", "the source's last", "epochs to it", "seconds of training to it"], lines
    )


def regularisation_table() -> str:
    """Medians over the seeds."""
    if not REGULARISATION.exists():
        return "not run yet"
    by_seed = list(json.loads(REGULARISATION.read_text()).values())
    lines = []
    for same_lam in zip(*by_seed, strict=True):
        values = {key: [np.inf if line[key] is None else line[key] for line in same_lam] for key in same_lam[0]}
        middle = {key: float(np.median(of_seeds)) for key, of_seeds in values.items()}
        plain = f"{middle['plain_iterations']:.0f}" if np.isfinite(middle["plain_iterations"]) else f"> {middle['at_most']:.0f}"
        sizes = min(line["smallest_cluster"] for line in same_lam), max(line["largest_cluster"] for line in same_lam)
        lines.append(
            [
                f"{middle['lam']:.0f}", plain, f"{middle['iterations']:.0f}", f"{middle['seconds']:.2f}",
                f"{middle['plan_above_exact']:.4f}", f"{100 * middle['same_labels']:.2f}", f"{sizes[0]} to {sizes[1]}",
            ]
        )  # fmt: skip
    header = [
        "lam", "plain iterations", "sela_tf's", "seconds", "plan above exact, nats", "argmax like exact, %", "sizes of the argmax",
    ]  # fmt: skip
    return markdown(header, lines)


def write_page() -> None:
    """Puts the tables between their markers."""
    text = PAGE.read_text()
    others = {"transfer": transfer_table(), "regularisation": regularisation_table()}
    for name, made in {**{name: table(name) for name in TABLES}, **others}.items():
        pattern = re.compile(rf"(<!-- table {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        text = pattern.sub(lambda match, made=made: f"{match[1]}{made}\n{match[2]}", text)
    PAGE.write_text(text)
