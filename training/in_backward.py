"""Steps inside the backward pass: a gradient is used as soon as it is whole, and let go.

So the gradients of all parameters are never in memory together. A gradient is whole where its
parameter was used everywhere: autograd calls the hook once for a parameter that is used twice, and
raises, rather than computes something else, where it needs a weight that has changed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from jobs.finetuning import FinetuneStep


def is_exact(step: FinetuneStep, micro_batches: int) -> bool:
    """Tell whether steps inside the backward pass are those that would follow it.

    Args:
        step: Says whether gradients are clipped by the norm of all, which nobody knows before the
            backward pass ends.
        micro_batches: How many backward passes make an effective batch.

    Returns:
        True where one backward pass has the whole gradient and nothing is clipped. Weights are then
        equal to the bit.
    """
    return micro_batches == 1 and step.max_grad_norm is None


@contextmanager
def stepping_in_backward(
    optimizer: torch.optim.Optimizer, prepare: Callable[[torch.nn.Parameter], None]
) -> Iterator[None]:
    """Have every backward pass do the optimizer's step, one parameter after the other.

    Set the learning rate before the backward pass, and do not call the optimizer's `step` after it.

    Args:
        optimizer: Has the parameters; its states are the same as without.
        prepare: What is done to a parameter's gradient first, as `hold_zeros`.

    Yields:
        Nothing. When the context ends, backward passes give gradients again.
    """
    hooks = [
        parameter.register_post_accumulate_grad_hook(partial(_step, optimizer, group, prepare))
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def step_parameter(
    optimizer: torch.optim.Optimizer, group: dict[str, Any], parameter: torch.nn.Parameter
) -> None:
    """Do one parameter's part of a step.

    Args:
        optimizer: Has the parameter.
        group: That of the optimizer's groups which it is in.
        parameter: It has a gradient, or nothing is done.
    """
    groups = optimizer.param_groups
    # The optimizer looks at all of its parameters, for each of them, unless it is shown but one.
    optimizer.param_groups = [{**group, "params": [parameter]}]
    try:
        optimizer.step()
    finally:
        optimizer.param_groups = groups


def _step(
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    prepare: Callable[[torch.nn.Parameter], None],
    parameter: torch.nn.Parameter,
) -> None:
    """Do one parameter's part of a step, and free its gradient."""
    prepare(parameter)
    step_parameter(optimizer, group, parameter)
    parameter.grad = None
