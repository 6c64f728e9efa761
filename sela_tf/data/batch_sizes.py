"""Batch sizes of the passes over images that are no optimizer steps; constants, because they decide the last digits of some figures."""

from __future__ import annotations

EVALUATION_BATCH = 500
"""Images a batch of a pass outside training: channel statistics, evaluation, probes and, by default, the labelling of images by a finished
run. In float32, 500 images of 224 x 224 x 3 take 0.3 GB."""

LABEL_PASS_BATCH = 1000
"""Images a batch of a label pass, and of the passes of the monitors beside it. It is the reference code's number, large enough for
steady batch statistics."""
