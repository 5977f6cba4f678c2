"""An optimizer's states in the host's memory, and on the device for one parameter's step at a time.

Ren et al., 2021, "ZeRO-Offload: Democratizing Billion-Scale Model Training", arXiv:2101.06840,
keeps states on the host, too. It differs in that the step is not computed there: states travel,
twice the bytes of gradients and weights, and in return the step is the device's own, to the bit,
with every optimizer.
"""

import torch

from training.in_backward import step_parameter

_State = dict[str, torch.Tensor]


def to_host(state: _State) -> _State:
    """Give a parameter's states as they are kept on the host.

    Args:
        state: On the device.

    Returns:
        Copies, in pages that a CUDA device reads by itself where there is one; a count of steps
        stays where it is.
    """
    return {
        name: torch.empty_like(value, device="cpu", pin_memory=value.is_cuda).copy_(value)
        if _travels(value)
        else value
        for name, value in state.items()
    }


def bring_states_with_each_step(optimizer: torch.optim.Optimizer) -> None:
    """Have the states of those parameters that a step is about come to their device and go back.

    Args:
        optimizer: Of `build_optimizer`, with its states on the host. Show it one parameter at a
            time, as `step_by_parameter` and steps inside the backward pass do. Its states are on
            the host whenever it does no step, and are the same tensors always.
    """
    at_home: dict[torch.nn.Parameter, _State] = {}

    def bring(optimizer: torch.optim.Optimizer, *_arguments: object) -> None:
        for parameter in _shown(optimizer):
            at_home[parameter] = optimizer.state[parameter]
            optimizer.state[parameter] = {
                name: torch.empty_like(value, device=parameter.device).copy_(value)
                if _travels(value)
                else value
                for name, value in at_home[parameter].items()
            }

    def take_back(optimizer: torch.optim.Optimizer, *_arguments: object) -> None:
        for parameter in _shown(optimizer):
            home = at_home.pop(parameter)
            for name, value in optimizer.state[parameter].items():
                # A number is none of those that travel, and the optimizer may have put it anew.
                home[name] = home[name].copy_(value) if _travels(home[name]) else value
            optimizer.state[parameter] = home

    optimizer.register_step_pre_hook(bring)
    optimizer.register_step_post_hook(take_back)


def step_by_parameter(optimizer: torch.optim.Optimizer) -> None:
    """Do a step, one parameter after the other, so that few states are on the device together.

    Args:
        optimizer: Its parameters have gradients, which stay.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            step_parameter(optimizer, group, parameter)


def room_for_states(parameter: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Give as much memory on a parameter's device as its states take there, or more.

    Args:
        parameter: Any of those that are trained.

    Returns:
        What holds that memory: two moments of AdamW, of which no other optimizer has more.
    """
    return torch.empty_like(parameter), torch.empty_like(parameter)


def _shown(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _travels(value: torch.Tensor) -> bool:
    """Tell whether it is a state of elements, rather than a count of steps."""
    return value.ndim > 0
