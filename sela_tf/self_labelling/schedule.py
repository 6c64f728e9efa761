"""When labels are recomputed."""

from __future__ import annotations

import math

SPACINGS = {"quadratic": 2, "linear": 1}


def relabel_steps(num_relabellings: int, *, epochs: int, steps_per_epoch: int, spacing: str = "quadratic") -> list[int]:
    """Optimizer steps before which labels are recomputed: increasing, the first 0, all within training.

    The reference's times are (epochs + 1.01) (j / (n - 1))^p epochs for j = 0 … n - 1, with p = 2 for ImageNet (relabellings
    crowd at the start) and p = 1 for CIFAR. The last falls behind the end of training, as may others of a short run; times that
    round up to one step count once.

    Args:
        num_relabellings: n; 0 for none at all. 80 is the paper's best on ImageNet.
        epochs: of the whole training.
        steps_per_epoch: optimizer steps.
        spacing: "quadratic" or "linear".

    Raises:
        ValueError: a number is out of range, or the spacing unknown.
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
