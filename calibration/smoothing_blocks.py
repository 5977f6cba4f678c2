"""Smooths a block: finds which Linears a norm feeds, and keeps what changes nothing it says."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from calibration.observation import Linears, input_peaks, watching
from calibration.smoothing import find_exponents, scaled
from evaluation.skeletons import Block
from evaluation.walking import Call


@dataclass(frozen=True)
class Feed:
    """A norm, and the Linears that are given what it puts out.

    Attributes:
        norm: Its name.
        module: Itself.
        linears: Their names.
    """

    norm: str
    module: torch.nn.Module
    linears: tuple[str, ...]


def smooth(
    block: Block,
    linears: Linears,
    rounded: Collection[str],
    calls: Sequence[Call],
    strength: float,
) -> list[Feed]:
    """Smooth the inputs of a block's Linears.

    Args:
        block: Loaded; its norms and Linears are changed.
        linears: All that it has, by name.
        rounded: Those whose activations are going to be rounded.
        calls: What it is run with.
        strength: As in `smoothing.find_exponents`.

    Returns:
        What was smoothed, or needs no smoothing. A norm whose outputs go elsewhere too is left as
        it was: the block must put out the same bits after as before.
    """
    found = _find_feeds(block, linears, calls[0])
    feeds = [feed for feed in found if any(name in rounded for name in feed.linears)]
    peaks = input_peaks(block, {f.linears[0]: linears[f.linears[0]] for f in feeds}, calls)
    smoothed = []
    for feed in feeds:
        weights: list[torch.Tensor] = [linears[n].weight for n in feed.linears]  # type: ignore[misc]
        exponents = find_exponents(peaks[feed.linears[0]], weights, strength)
        norm = [(tensor, -exponents) for tensor in feed.module.parameters(recurse=False)]
        if _keeps_outputs(block, calls[0], norm + [(weight, exponents) for weight in weights]):
            smoothed.append(feed)
    return smoothed


def _find_feeds(block: Block, linears: Linears, call: Call) -> list[Feed]:
    """Run the block once, and see which Linears are given a norm's output as it is."""
    outputs: dict[str, torch.Tensor] = {}
    fed: dict[str, list[str]] = {}

    def keep(name: str, output: Any) -> None:  # noqa: ANN401 - whatever a module gives
        if isinstance(output, torch.Tensor):
            outputs[name] = output

    def look(name: str, inputs: torch.Tensor) -> None:
        for norm, output in outputs.items():
            if output.data_ptr() == inputs.data_ptr() and output.shape == inputs.shape:
                fed.setdefault(norm, []).append(name)

    norms = {
        name: module
        for name, module in block.module.named_modules(prefix=block.name)
        if _is_norm(module)
    }
    hooks = [
        module.register_forward_hook(lambda _m, _a, output, name=name: keep(name, output))
        for name, module in norms.items()
    ]
    try:
        with watching(linears, look):
            call.repeat(block)
    finally:
        for hook in hooks:
            hook.remove()
    return [Feed(norm, norms[norm], tuple(names)) for norm, names in fed.items()]


def _is_norm(module: torch.nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.ndim == 1 and not list(module.children())


def _keeps_outputs(
    block: Block, call: Call, changes: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> bool:
    """Multiply tensors by powers of two, and take that back where the block says otherwise then."""
    before = [tensor.clone() for tensor, _ in changes]
    expected = _first_tensor(call.repeat(block))
    for tensor, exponents in changes:
        tensor.copy_(scaled(tensor, exponents))
    if torch.equal(_first_tensor(call.repeat(block)), expected):
        return True
    for (tensor, _), values in zip(changes, before, strict=True):
        tensor.copy_(values)
    return False


def _first_tensor(output: Any) -> torch.Tensor:  # noqa: ANN401
    found: torch.Tensor = output if isinstance(output, torch.Tensor) else output[0]
    return found
