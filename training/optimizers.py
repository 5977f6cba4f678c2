"""The optimizers of the finetune step, their states in memory from the start, and as named tensors.

torch makes states in the first step. Here they are there before: what is measured of memory then
holds for every step, and a state that was kept has a place to be read into.
"""

from collections.abc import Collection, Mapping

import torch

from jobs.finetuning import FinetuneStep
from training.adamw8bit import AdamW8bit
from training.offloading import bring_states_with_each_step, to_host

_State = dict[str, torch.Tensor]


def build_optimizer(
    parameters: Mapping[str, torch.nn.Parameter],
    step: FinetuneStep,
    *,
    has_8bit_states: bool,
    embeddings: Collection[str] = (),
    is_offloaded: bool = False,
) -> torch.optim.Optimizer:
    """Make the optimizer of a step.

    Args:
        parameters: What is trained, by name; float32.
        step: Names the optimizer, its weight decay and momentum.
        has_8bit_states: Whether the moments of AdamW take a byte each, also where the step says
            `adamw`.
        embeddings: Names of those whose moments take 32 bits all the same: `embedding_names`.
        is_offloaded: Whether states are in the host's memory, and on the device for each
            parameter's step only: `training.offloading`.

    Returns:
        It, with all of its states allocated, their pages touched, and zero: the next step is the
        first one. The learning rate is the step's largest; set each group's before every step.
        torch's AdamW and SGD are fused, which takes no memory beside the states; Adafactor takes as
        much as the largest parameter, AdamW with 8-bit states a few megabytes.

    Raises:
        ValueError: Only AdamW has 8-bit states.
    """
    # Adafactor divides by their number of elements.
    trained = {name: value for name, value in parameters.items() if value.numel()}
    has_8bit_states = has_8bit_states or step.optimizer == "adamw8bit"
    if has_8bit_states:
        if step.optimizer not in {"adamw", "adamw8bit"}:
            raise ValueError(f"{step.optimizer} has no 8-bit states; only AdamW has")
        whole = [trained[name] for name in embeddings if name in trained]
        return AdamW8bit(
            trained.values(),
            lr=step.learning_rate,
            weight_decay=step.weight_decay,
            whole=whole,
            is_offloaded=is_offloaded,
        )
    optimizer = _plain_optimizer(list(trained.values()), step)
    for parameter in trained.values():
        state = _zero_state(parameter, step)
        optimizer.state[parameter] = to_host(state) if is_offloaded else state
    if is_offloaded:
        bring_states_with_each_step(optimizer)
    return optimizer


def embedding_names(module: torch.nn.Module) -> frozenset[str]:
    """Give the names of a model's embeddings, also where a head is tied to them."""
    return frozenset(
        f"{name}.weight" if name else "weight"
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Embedding)
    )


def optimizer_state(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, torch.nn.Parameter]
) -> dict[str, torch.Tensor]:
    """Give all that an optimizer remembers, as tensors by name.

    Args:
        optimizer: Of `build_optimizer`.
        parameters: Those that it was made with.

    Returns:
        `<parameter>/<key>`: the tensors themselves, so that what is read into them in place is the
        optimizer's. They decide together with the parameters about every bit of later steps.
    """
    return {
        f"{name}/{key}": tensor
        for name, parameter in parameters.items()
        if parameter in optimizer.state
        for key, tensor in optimizer.state[parameter].items()
    }


def load_optimizer_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, torch.nn.Parameter],
    tensors: Mapping[str, torch.Tensor],
) -> None:
    """Take up what an optimizer remembered.

    Args:
        optimizer: Of `build_optimizer`, for the same step as the other was.
        parameters: Those that it was made with.
        tensors: As `optimizer_state` gave them; they are copied.

    Raises:
        ValueError: The tensors are of another optimizer, or of other parameters.
    """
    states = optimizer_state(optimizer, parameters)
    if states.keys() != tensors.keys():
        differing = sorted(states.keys() ^ tensors.keys())[:3]
        raise ValueError(f"the state is of another optimizer: {differing} are in one of them only")
    for name, state in states.items():
        kept = tensors[name]
        if (kept.shape, kept.dtype) != (state.shape, state.dtype):
            raise ValueError(
                f"{name} is {kept.dtype} of {list(kept.shape)}, the optimizer's {state.dtype} of "
                f"{list(state.shape)}"
            )
    for name, state in states.items():
        state.copy_(tensors[name])


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Give the bytes of everything that an optimizer remembers."""
    return sum(tensor.nbytes for state in optimizer.state.values() for tensor in state.values())


def _plain_optimizer(
    parameters: list[torch.nn.Parameter], step: FinetuneStep
) -> torch.optim.Optimizer:
    """Make one of torch's, which holds no state yet."""
    rate, decay = step.learning_rate, step.weight_decay
    if step.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, lr=rate, momentum=step.momentum, weight_decay=decay, fused=True
        )
    if step.optimizer == "adafactor":
        # A step is as long as the learning rate says, as AdamW's is. By default it would be that
        # times the weights' root mean square, for which rates are a hundred times as large.
        return torch.optim.Adafactor(
            parameters, lr=rate, eps=(None, 1.0), weight_decay=decay, foreach=False
        )
    return torch.optim.AdamW(parameters, lr=rate, weight_decay=decay, fused=True)


def _zero_state(parameter: torch.Tensor, step: FinetuneStep) -> _State:
    """Give what torch's optimizer would make in its first step."""
    if step.optimizer == "sgd":
        return {"momentum_buffer": _zeros(parameter)} if step.momentum else {}
    if step.optimizer == "adafactor":
        if parameter.ndim < 2:
            return {"step": torch.zeros(()), "variance": _zeros(parameter)}
        return {
            "step": torch.zeros(()),
            "row_var": _zeros(parameter.narrow(-1, 0, 1)).contiguous(),
            "col_var": _zeros(parameter.narrow(-2, 0, 1)).contiguous(),
        }
    # Fused, it counts its steps where the parameter is.
    return {
        "step": torch.zeros((), device=parameter.device),
        "exp_avg": _zeros(parameter),
        "exp_avg_sq": _zeros(parameter),
    }


def _zeros(like: torch.Tensor) -> torch.Tensor:
    """Give zeros, every page of which was written to."""
    return torch.empty_like(like.detach()).fill_(0)
