"""The learning rate of every step."""

import math

from jobs.finetuning import FinetuneStep


def learning_rate_at(step: FinetuneStep, done: int, total: int) -> float:
    """Give the learning rate of one optimizer step.

    Args:
        step: Names the schedule, the largest rate, and the steps in which it rises.
        done: How many steps were done before it.
        total: How many there are.

    Returns:
        It rises evenly over `warmup_steps`, none of which has the rate 0, and then stays, falls
        evenly, or falls along half a cosine, so that the step after the last one would have 0.
    """
    if done < step.warmup_steps:
        return step.learning_rate * (done + 1) / step.warmup_steps
    if step.schedule == "constant":
        return step.learning_rate
    share = (done - step.warmup_steps) / max(1, total - step.warmup_steps)
    if step.schedule == "linear":
        return step.learning_rate * (1 - share)
    return step.learning_rate * (1 + math.cos(math.pi * share)) / 2
