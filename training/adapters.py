"""Low-rank adapters beside frozen weights.

A module's answer is W x + (alpha / rank) B A x, of which only A and B are trained; B is zero in the
beginning: Hu et al., 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv:2106.09685,
section 4.1.

Dimension key: O output features, I input features, R the rank.
"""

import json
import math
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from safetensors.torch import save_file
from torch.utils.hooks import RemovableHandle

from jobs.finetuning import Lora
from training.masks import sparse_parameters

#: What an adapter is called in the module that it belongs to.
_CHILD = "lora"
#: Elements of a weight that are merged at a time.
_PIECE = 2**20


class _Adapter(torch.nn.Module):
    """A, [R, I], and B, [O, R], of one module, in float32 whatever the module's weight has.

    Args:
        module: The module.
        lora: Rank and scale.
        chance: Draws A, as peft does; on the host, so that every device begins alike.

    Attributes:
        lora_A: A.
        lora_B: B.
        scale: alpha / rank.
        is_turned: Whether the module's weight is [I, O], as GPT-2's are, rather than [O, I].
        hook: Has the module call it.
    """

    lora_A: torch.nn.Parameter  # noqa: N815 - as in files
    lora_B: torch.nn.Parameter  # noqa: N815 - as in files
    scale: float
    is_turned: bool
    hook: RemovableHandle

    def __init__(self, module: torch.nn.Module, lora: Lora, chance: torch.Generator) -> None:
        super().__init__()
        weight = _weight(module)
        self.is_turned = _is_turned(module)
        outputs, inputs = weight.T.shape if self.is_turned else weight.shape
        self.scale = lora.alpha / lora.rank
        reach = 1 / math.sqrt(inputs)
        first = torch.empty(lora.rank, inputs).uniform_(-reach, reach, generator=chance)
        self.lora_A = torch.nn.Parameter(first.to(weight.device))
        self.lora_B = torch.nn.Parameter(torch.zeros(outputs, lora.rank, device=weight.device))

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        """Give what is added to the module's answer, float32 but under autocast."""
        return (
            F.linear(F.linear(given.to(self.lora_A.dtype), self.lora_A), self.lora_B) * self.scale
        )

    def change(self, rows: slice) -> torch.Tensor:
        """Give what it adds to some rows of the module's weight, float32."""
        if self.is_turned:
            return (self.lora_A[:, rows].T @ self.lora_B.T) * self.scale
        return (self.lora_B[rows] @ self.lora_A) * self.scale


def adaptable_names(model: torch.nn.Module) -> tuple[str, ...]:
    """Give the names of the modules that can have an adapter.

    Args:
        model: Any.

    Returns:
        All that multiply by a matrix of their own, in the model's order. Those whose matrix is
        another module's too, as a head's that is tied to an embedding, are not among them: a merge
        would change that module as well.
    """
    owners: dict[int, int] = {}
    for _, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return tuple(
        name
        for name, module in model.named_modules()
        if _is_linear(module) and owners[id(module.weight)] == 1
    )


def add_adapters(
    model: torch.nn.Module, lora: Lora, names: Collection[str], *, seed: int = 0
) -> dict[str, torch.nn.Parameter]:
    """Put adapters beside modules, and freeze all that the model had, in place.

    Args:
        model: A model without adapters. Its weights keep dtype, name and value, and it answers as
            before until an adapter is trained.
        lora: Rank and scale.
        names: Of modules, from `adaptable_names`.
        seed: Of what A begins with.

    Returns:
        What is to be trained, by name: `<module>.lora_A.weight` and `<module>.lora_B.weight`.

    Raises:
        ValueError: There is no name, or a module of that name cannot have an adapter.
    """
    unfit = sorted(set(names) - set(adaptable_names(model)))
    if unfit or not names:
        raise ValueError(f"no adapter can stand beside {unfit or 'nothing'}")
    model.requires_grad_(requires_grad=False)
    chance = torch.Generator().manual_seed(seed)
    trained = {}
    for name in adaptable_names(model):
        if name in names:
            module = model.get_submodule(name)
            adapter = _Adapter(module, lora, chance)
            module.add_module(_CHILD, adapter)
            adapter.hook = module.register_forward_hook(_add_to_answer, with_kwargs=True)
            trained[f"{name}.lora_A.weight"] = adapter.lora_A
            trained[f"{name}.lora_B.weight"] = adapter.lora_B
    return trained


def merge_adapters(model: torch.nn.Module) -> dict[str, int]:
    """Add all adapters to the weights that they stand beside, in place, and take them away.

    Args:
        model: With adapters.

    Returns:
        By module, how many weights an adapter would have changed and did not, because they were
        zero in a weight that pruning made sparse; such zeros stay exactly zero. Modules that lost
        nothing are left out. The sum is rounded once, to the weight's dtype.
    """
    lost = {}
    for name, module, adapter in list(_adapted(model)):
        if count := _merge(_weight(module), adapter):
            lost[name] = count
        adapter.hook.remove()
        delattr(module, _CHILD)
    return lost


def save_adapters(model: torch.nn.Module, lora: Lora, folder: Path) -> None:
    """Write all adapters as peft does, for `PeftModel.from_pretrained(model, folder)` to open.

    Args:
        model: With adapters.
        lora: What they were added with.
        folder: Where to; it is made.
    """
    adapted = list(_adapted(model))
    names = [name for name, _, _ in adapted]
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(lora.alpha) if lora.alpha.is_integer() else lora.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": any(adapter.is_turned for _, _, adapter in adapted),
        "target_modules": _targets(model, names),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {}
    for name, _, adapter in adapted:
        tensors[f"base_model.model.{name}.lora_A.weight"] = adapter.lora_A.detach()
        tensors[f"base_model.model.{name}.lora_B.weight"] = adapter.lora_B.detach()
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})


def _merge(weight: torch.nn.Parameter, adapter: _Adapter) -> int:
    """Add an adapter to its weight, and count the zeros that it would have changed."""
    is_sparse = bool(sparse_parameters({"weight": weight}))
    lost = 0
    height = max(1, _PIECE // max(1, weight.shape[1]))
    with torch.no_grad():
        for start in range(0, weight.shape[0], height):
            rows = slice(start, start + height)
            change = adapter.change(rows)
            if is_sparse:
                zeros = weight[rows] == 0
                lost += int((zeros & (change != 0)).sum())
                change.masked_fill_(zeros, 0)
            weight[rows] = (weight[rows].float() + change).to(weight.dtype)
    return lost


def _adapted(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module, _Adapter]]:
    for name, module in model.named_modules():
        adapter = getattr(module, _CHILD, None)
        if isinstance(adapter, _Adapter):
            yield name, module, adapter


def _add_to_answer(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], answer: torch.Tensor
) -> torch.Tensor:
    """Add what the adapter says, in the dtype of the module's own answer."""
    given = args[0] if args else next(iter(kwargs.values()))
    change: torch.Tensor = getattr(module, _CHILD)(given)
    return answer + change.to(answer.dtype)


def _targets(model: torch.nn.Module, names: list[str]) -> list[str] | str:
    """Name modules for peft, which takes a listed name for any module whose name ends with it."""
    others = {name for name, _ in model.named_modules()} - set(names)
    if any(other.endswith(f".{name}") for other in others for name in names):
        return "|".join(re.escape(name) for name in names)
    return names


def _is_linear(module: torch.nn.Module) -> bool:
    """Tell whether a module is a product with a matrix, and nothing that only derives from one."""
    return type(module) is torch.nn.Linear or _is_turned(module)


def _is_turned(module: torch.nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _weight(module: torch.nn.Module) -> torch.nn.Parameter:
    return module.weight  # type: ignore[return-value] # not seen by mypy
