"""The weights that a step could change, with what speaks against it whatever the recipe says."""

from dataclasses import dataclass

from jobs.checkpoint import Checkpoint
from jobs.problems import Problem
from jobs.safetensors_header import TensorSpec
from planning.blocks import block_of
from planning.matrices import WEIGHT_DTYPES, Matrix
from planning.module_kinds import ModuleKinds
from planning.naming import (
    COMPRESSED_KINDS,
    is_head,
    is_quantized,
    is_router,
    is_weight,
    kind_by_shape,
    module_of,
)

#: Modules whose output channels are sums over inputs, each with a weight of its own.
_WATCHED_KINDS = frozenset({"Linear", "Conv1D"})


@dataclass(frozen=True)
class Candidate:
    """A weight of two or more dimensions.

    Attributes:
        weight: The tensor.
        module: Its module's name in the checkpoint.
        model_module: Its module's name in the model; None where there is no such module, or no
            model to ask.
        kind: The module's kind, as in `planning.module_kinds`.
        bias: The module's bias, where it has one.
        unsupported: Why no step can change it; None where some can.
        left_by_default: Why it is left alone unless an include pattern names it.
        tied_to: The parameter that it is one tensor with.
        is_stored_twice: Whether that parameter is in the checkpoint too.
        is_merged: Whether transformers turns it into another tensor while loading it.
        is_named: Whether transformers' model needs a ``weight`` in the module, which packing takes.
        is_given: Whether the graph of a program says what it is multiplied with.
    """

    weight: TensorSpec
    module: str
    model_module: str | None
    kind: str
    bias: TensorSpec | None
    unsupported: str | None
    left_by_default: str | None
    tied_to: str | None
    is_stored_twice: bool
    is_merged: bool
    is_named: bool
    is_given: bool = False

    @property
    def is_watched(self) -> bool:
        """Whether it has inputs that are seen where the model is run for a calibration."""
        is_linear = self.kind in _WATCHED_KINDS and not self.is_merged
        is_in_block = is_linear and block_of(self.model_module or "") is not None
        return is_in_block or self.is_given

    @property
    def is_stacked(self) -> bool:
        """Whether it is stacked with others of its kind, as the weights of experts are."""
        return self.is_merged and self.model_module is None and self.kind == "Linear"

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """The weight by output channel, and the bias where there is one."""
        weight = Matrix.of(self.weight, self.kind)
        if self.bias is None or self.bias.dtype not in WEIGHT_DTYPES or not self.bias.elements:
            return (weight,)
        return weight, Matrix.of(self.bias, self.kind)


def find_candidates(checkpoint: Checkpoint, kinds: ModuleKinds | None) -> list[Candidate]:
    """List every weight that a step could change, in the order of the files.

    Args:
        checkpoint: The model.
        kinds: What its own code says about it; None goes by names and shapes.

    Returns:
        The candidates: everything of two or more dimensions that is not a known buffer.

    Raises:
        Problem: `already_quantized`: the checkpoint or its config shows signs of quantization.
    """
    _refuse_quantized(checkpoint)
    known = kinds or ModuleKinds({})
    return [
        _candidate(tensor, checkpoint, known)
        for tensor in checkpoint.tensors.values()
        if is_weight(tensor)
    ]


def _refuse_quantized(checkpoint: Checkpoint) -> None:
    if (checkpoint.config or {}).get("quantization_config") is not None:
        raise Problem(
            "already_quantized",
            "config.json has a quantization_config. Compress the model it was made from.",
        )
    for tensor in checkpoint.tensors.values():
        if is_quantized(tensor):
            raise Problem(
                "already_quantized",
                f"Tensor {tensor.name!r} of dtype {tensor.dtype} is part of a quantized model. "
                "Compress the model it was made from.",
            )


def _candidate(tensor: TensorSpec, checkpoint: Checkpoint, kinds: ModuleKinds) -> Candidate:
    module = module_of(tensor.name)
    if module is None:
        module, kind, model_module = tensor.name, "Parameter", None
    else:
        model_module = kinds.find(module)
        kind = kinds.kinds[model_module] if model_module else kind_by_shape(tensor, module)
    bias_name = tensor.name.removesuffix("weight") + "bias"
    others = _tied_to(tensor, model_module, kinds)
    stored = checkpoint.tensors
    return Candidate(
        weight=tensor,
        module=module,
        model_module=model_module,
        kind=kind,
        bias=stored.get(bias_name) if module_of(tensor.name) is not None else None,
        unsupported=_unsupported(tensor, kind),
        left_by_default=_left_by_default(module, model_module, kind, kinds),
        tied_to=others[0] if others else None,
        is_stored_twice=any(_is_stored(other, stored, kinds) for other in others),
        is_merged=tensor.name in kinds.merged,
        is_named=model_module in kinds.named_weights,
    )


def _tied_to(tensor: TensorSpec, model_module: str | None, kinds: ModuleKinds) -> list[str]:
    name = tensor.name if model_module is None else f"{model_module}.weight"
    return [other for group in kinds.tied if name in group for other in group if other != name]


def _is_stored(name: str, stored: dict[str, TensorSpec], kinds: ModuleKinds) -> bool:
    return name in stored or name.removeprefix(f"{kinds.prefix}.") in stored


def _unsupported(tensor: TensorSpec, kind: str) -> str | None:
    if tensor.dtype not in WEIGHT_DTYPES:
        return f"Its dtype is {tensor.dtype}; {', '.join(sorted(WEIGHT_DTYPES))} are compressed."
    if tensor.elements == 0:
        return "It is empty."
    if kind == "Parameter":
        if "experts" in tensor.name:
            return "It is a stack of fused experts, which are left as they are."
        return "Its name does not end in .weight, so its role is unknown."
    if kind not in COMPRESSED_KINDS and kind != "Embedding":
        return f"It belongs to a {kind}; Linear, Conv and Embedding modules are compressed."
    return None


def _left_by_default(
    module: str, model_module: str | None, kind: str, kinds: ModuleKinds
) -> str | None:
    if kind == "Embedding":
        return "It is an embedding"
    if is_head(module) or (model_module is not None and model_module == kinds.head):
        return "It is the output head"
    if is_router(module):
        return "It routes tokens to experts"
    return None
