"""What the inputs of a block's Linears have in common over all rows.

Dimension key: B rows, T tokens of each, N tokens of all, I inputs of a Linear.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from evaluation.skeletons import Block
from evaluation.walking import Call

Linears = Mapping[str, torch.nn.Module]


def input_norms(block: Block, linears: Linears, calls: Sequence[Call]) -> dict[str, torch.Tensor]:
    """Give the Euclidean norm of every input over all tokens, padding apart.

    Args:
        block: What is run, once for each call.
        linears: Some of its modules, by name.
        calls: What it is run with.

    Returns:
        Float32 [I] for each that was reached.
    """
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, inputs: torch.Tensor) -> None:
        squares = inputs.float().square().sum(0)
        sums[name] = sums[name] + squares if name in sums else squares

    _run(block, linears, calls, add)
    return {name: total.sqrt() for name, total in sums.items()}


def input_squares(block: Block, modules: Linears, calls: Sequence[Call]) -> dict[str, torch.Tensor]:
    """Give the squared Euclidean norm of every input over all tokens, padding apart.

    Args:
        block: What is run, once for each call.
        modules: Some of its modules, by name.
        calls: What it is run with.

    Returns:
        Float64 [I] for each that was reached.
    """
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, inputs: torch.Tensor) -> None:
        squares = inputs.float().square().sum(0, dtype=torch.float64)
        sums[name] = sums[name] + squares if name in sums else squares

    _run(block, modules, calls, add)
    return sums


def input_peaks(block: Block, linears: Linears, calls: Sequence[Call]) -> dict[str, torch.Tensor]:
    """Give the largest magnitude of every input over all tokens, padding apart.

    Args:
        block: What is run, once for each call.
        linears: Some of its modules, by name.
        calls: What it is run with.

    Returns:
        Float32 [I] for each that was reached.
    """
    peaks: dict[str, torch.Tensor] = {}

    def add(name: str, inputs: torch.Tensor) -> None:
        found = inputs.float().abs().amax(0)
        peaks[name] = torch.maximum(peaks[name], found) if name in peaks else found

    _run(block, linears, calls, add)
    return peaks


def hessians(
    block: Block, linears: Linears, calls: Sequence[Call]
) -> list[tuple[tuple[str, ...], torch.Tensor]]:
    """Give the products of inputs, X^T X, over all tokens, padding apart.

    Args:
        block: What is run, once for each call.
        linears: Some of its modules, by name.
        calls: What it is run with.

    Returns:
        Float32 [I, I], each with the names of all that are given the very same inputs, as query,
        key and value are; only of those that were reached.
    """
    owner: dict[str, str] = {}
    sums: dict[str, torch.Tensor] = {}
    last: tuple[str, torch.Tensor] | None = None

    def add(name: str, inputs: torch.Tensor) -> None:
        nonlocal last
        if name not in owner:
            is_same = last is not None and _is_one(last[1], inputs)
            owner[name] = owner[last[0]] if is_same and last else name
        if owner[name] == name:
            wide = inputs.float()
            if name not in sums:
                sums[name] = torch.zeros(wide.shape[1], wide.shape[1])
            sums[name].addmm_(wide.T, wide)
        last = name, inputs

    _run(block, linears, calls, add)
    return [(tuple(n for n, o in owner.items() if o == name), sums[name]) for name in sums]


def _is_one(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.shape == second.shape and torch.equal(first, second)


def _run(
    block: Block,
    linears: Linears,
    calls: Sequence[Call],
    add: Callable[[str, torch.Tensor], None],
) -> None:
    for call in calls:
        with watching(linears, partial(_add_tokens, call, add)):
            call.repeat(block)


def _add_tokens(
    call: Call, add: Callable[[str, torch.Tensor], None], name: str, inputs: torch.Tensor
) -> None:
    mask = call.batch.mask
    if mask is not None and inputs.shape[:2] == mask.shape:
        tokens = inputs[mask]
    else:
        tokens = inputs.reshape(-1, inputs.shape[-1])
    if len(tokens):
        add(name, tokens)


@contextmanager
def watching(modules: Linears, look: Callable[[str, torch.Tensor], None]) -> Iterator[None]:
    """Have the inputs of modules looked at while the block runs.

    Args:
        modules: The modules, by name.
        look: Given a module's name and its first input.

    Yields:
        Nothing.
    """

    def hook(name: str, _: torch.nn.Module, args: tuple[Any, ...]) -> None:
        look(name, args[0])

    hooks = [m.register_forward_pre_hook(partial(hook, n)) for n, m in modules.items()]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()
