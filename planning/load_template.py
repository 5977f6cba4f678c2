"""Load the weights of this folder as plain float tensors under their original names.

Needs torch and safetensors alone:

    from load import load_state_dict
    model.load_state_dict(load_state_dict("folder"))
"""

import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open


def load_state_dict(folder: str | Path = ".") -> dict[str, torch.Tensor]:
    """Read every safetensors file of a folder and turn int8 weights back into floats."""
    return dict(_read(Path(folder)))


def _read(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            for name in sorted(names):
                if name.endswith(".weight_packed") or name == "weight_packed":
                    weight = name.removesuffix("_packed")
                    scale = file.get_tensor(f"{weight}_scale")
                    shape = file.get_tensor(f"{weight}_shape").tolist()
                    yield weight, unpack(file.get_tensor(name), shape, scale)
                elif f"{name}_scale" in names and file.get_slice(name).get_dtype() == "I8":
                    scale = file.get_tensor(f"{name}_scale")
                    yield name, file.get_tensor(name).to(scale.dtype) * scale
                elif not _belongs_to_int8(name, names, file):
                    yield name, file.get_tensor(name)


def unpack(packed: torch.Tensor, shape: list[int], scale: torch.Tensor) -> torch.Tensor:
    """Take four int8 values, each stored as value + 128, out of every int32; low byte first."""
    values = packed.view(torch.uint8)[:, : math.prod(shape[1:])].bitwise_xor(128).view(torch.int8)
    if len(scale) != len(values):  # A Conv1D's channels are its columns.
        return values.to(scale.dtype) * scale
    grouped = values.reshape(*scale.shape, -1).to(scale.dtype)
    return (grouped * scale[..., None]).reshape(shape)


def _belongs_to_int8(name: str, names: set[str], file: Any) -> bool:  # noqa: ANN401 - it has no type
    weight = name.removesuffix("_scale").removesuffix("_shape")
    if weight == name:
        return False
    is_int8 = weight in names and file.get_slice(weight).get_dtype() == "I8"
    return f"{weight}_packed" in names or is_int8


if __name__ == "__main__":
    for tensor_name, tensor in _read(Path(sys.argv[1] if len(sys.argv) > 1 else ".")):
        sys.stdout.write(f"{tensor_name}\t{tensor.dtype}\t{tuple(tensor.shape)}\n")
