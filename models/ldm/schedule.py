"""The learning rate as a function of the step alone, so that there is no scheduler state to resume."""

from __future__ import annotations

import torch


def learning_rate_factor(step: int, warmup: int, steps: int, decay: int) -> float:
    """Linear warm-up, then constant, then linear to zero over the last `decay` steps."""
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    falling = min(1.0, (steps - step) / decay) if decay else 1.0
    return rising * falling


def set_learning_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group the same rate."""
    for group in optimiser.param_groups:
        group["lr"] = rate
