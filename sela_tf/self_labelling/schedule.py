"""The schedule of relabellings: the optimizer steps before which labels are recomputed."""

from __future__ import annotations

import math

SPACINGS = {"quadratic": 2, "linear": 1}
"""The exponent p of the times of relabellings, by the name of the spacing."""


def relabel_steps(num_relabellings: int, *, epochs: int, steps_per_epoch: int, spacing: str = "quadratic") -> list[int]:
    """Returns the optimizer steps before which labels are recomputed: increasing, the first 0, all within training.

    The times of the reference code are (epochs + 1.01) (j / (n - 1))^p epochs for j = 0 … n - 1, with p = 2 for ImageNet, where relabellings
    are more frequent at the start, and p = 1 for CIFAR. Times after the end of training, as the last one always is, are left out; times
    that round up to the same step count once.

    Args:
        num_relabellings: the number n of relabellings, 0 for none. 80 is the paper's best on ImageNet.
        epochs: the epochs of the whole training.
        steps_per_epoch: the optimizer steps of an epoch.
        spacing: "quadratic" (p = 2) or "linear" (p = 1).

    Raises:
        ValueError: a number is out of range, or the spacing is unknown.
    """
    if spacing not in SPACINGS:
        raise ValueError(f"`spacing` must be one of {', '.join(SPACINGS)}. Received: spacing={spacing!r}")
    if num_relabellings < 0 or epochs < 1 or steps_per_epoch < 1:
        raise ValueError(
            "`num_relabellings` must not be negative, `epochs` and `steps_per_epoch` positive. "
            f"Received: {num_relabellings=}, {epochs=}, {steps_per_epoch=}"
        )
    shares = [(j / max(num_relabellings - 1, 1)) ** SPACINGS[spacing] for j in range(num_relabellings)]
    steps = {math.ceil((epochs + 1.01) * share * steps_per_epoch) for share in shares}
    return sorted(step for step in steps if step < epochs * steps_per_epoch)
