"""The stored tensors of an exported program: what its configs say, checked against its entries."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.problems import Problem
from jobs.program_graph import load_json
from jobs.program_schema import DTYPES, payload_config
from jobs.program_values import refuse
from jobs.safetensors_header import DTYPE_BYTES, TensorSpec

_MOST_DIMENSIONS = 64


@dataclass(frozen=True)
class ProgramTensor:
    """A parameter, buffer or constant.

    Attributes:
        spec: Its name, dtype and shape; it begins where its entry does.
        strides: How many values apart the neighbours in each dimension are.
        offset: Which value of the entry is its first.
        entry: The entry that holds it; tied ones have one entry.
        is_parameter: Whether it is one.
        is_trained: Whether it takes gradients.
    """

    spec: TensorSpec
    strides: tuple[int, ...]
    offset: int
    entry: str
    is_parameter: bool
    is_trained: bool

    @property
    def is_contiguous(self) -> bool:
        """Whether its values lie one behind the other, from the start of its entry."""
        expected = 1
        for size, stride in zip(reversed(self.spec.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return self.offset == 0


def read_config(raw: bytes, what: str) -> dict[str, Any]:
    """Read the JSON of a config of weights or of constants.

    Args:
        raw: The JSON.
        what: What it is called in the problem.

    Returns:
        What torch's ``PayloadConfig`` is written as, with nothing in it that was not looked at.

    Raises:
        Problem: `invalid_program`, `unsafe_program`.
    """
    config: dict[str, Any] = payload_config(load_json(raw, what), what)
    return config


def read_tensors(
    config: Mapping[str, Any], folder: str, spans: Mapping[str, tuple[int, int]]
) -> dict[str, ProgramTensor]:
    """Find the tensors of a config.

    Args:
        config: The config.
        folder: Where in the archive their bytes lie.
        spans: By the name of each entry, where it begins and how many bytes it has.

    Returns:
        The tensors by their names. All of their values lie in their entries.

    Raises:
        Problem: `invalid_program`, `tensor_out_of_bounds`.
    """
    payloads = config["config"]
    return {name: _tensor(name, payload, folder, spans) for name, payload in payloads.items()}


def _tensor(
    name: str, payload: dict[str, Any], folder: str, spans: Mapping[str, tuple[int, int]]
) -> ProgramTensor:
    meta = payload["tensor_meta"]
    sizes, strides, offset = (
        _numbers(meta["sizes"], name),
        _numbers(meta["strides"], name),
        _numbers([meta["storage_offset"]], name)[0],
    )
    entry = folder + payload["path_name"]
    if entry not in spans:
        refuse(name, f"its bytes, {entry}, are not in the archive")
    if len(sizes) != len(strides) or len(sizes) > _MOST_DIMENSIONS:
        refuse(name, f"its shape {list(sizes)} has the strides {list(strides)}")
    spec = TensorSpec(name, DTYPES[meta["dtype"]], sizes, 0)
    # Strides may have holes between values, but none leads out of the entry.
    steps = zip(sizes, strides, strict=True)
    last = offset + sum((size - 1) * stride for size, stride in steps)
    end = (last + 1) * DTYPE_BYTES[spec.dtype] if spec.elements else 0
    if end > spans[entry][1]:
        raise Problem(
            "tensor_out_of_bounds",
            f"Tensor {name[:80]!r} ends at byte {end} of {entry}, which has {spans[entry][1]}.",
        )
    return ProgramTensor(spec, strides, offset, entry, payload["is_param"], meta["requires_grad"])


def _numbers(values: list[dict[str, Any]], name: str) -> tuple[int, ...]:
    found = tuple(value.get("as_int", -1) for value in values)
    if any(not 0 <= value < 2**48 for value in found):
        refuse(name, "a stored tensor has sizes that are no plain numbers")
    return found
