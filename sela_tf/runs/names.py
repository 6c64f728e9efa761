"""The names of the files in the directory of a run."""

from __future__ import annotations

FLAGS, NETWORK, WEIGHTS, LABELS = "flags.cfg", "network.json", "model.weights.h5", "labels.npz"

RESULTS, PROBES = "results.json", "probes.json"

METRICS, TIMINGS, CHECKPOINTS, TENSORBOARD = "metrics.jsonl", "timings.jsonl", "checkpoints", "tensorboard"

REPORT, PICTURE, GALLERIES, PAGE, NAMES = "report.json", "report.png", "galleries", "report.html", "names.csv"

LEFT_OUT, PROBES_LEFT_OUT = "left_out.csv", "probes_left_out.csv"

LOCK = ".lock"

RUN_FILES = (FLAGS, NETWORK, WEIGHTS, LABELS, RESULTS, PROBES, METRICS, TIMINGS, REPORT, PAGE, LEFT_OUT, PROBES_LEFT_OUT)
