"""What quantization did to a checkpoint: `python -m benchmarks.errors MODEL OUTPUT`.

It decodes what every tool writes by itself and shares no code with any of them; but torchao's
tensors are pickled classes, so its files need an environment that has torchao.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open

_CHUNK_ELEMENTS = 1024**2

#: Tensors by name, each read when it is asked for.
Tensors = dict[str, Callable[[], torch.Tensor]]


@dataclass(frozen=True)
class Errors:
    """The error of all quantized weights of a checkpoint against its source.

    Attributes:
        weights: How many there are.
        relative_rmse: Root mean square of the differences over that of the source.
        max_error_steps: The largest difference, in units of the weight's scale, among those that
            are not zero in the output: pruning may have set a zero.
        zeros: Fraction of weights that are zero in the output.
    """

    weights: int
    relative_rmse: float
    max_error_steps: float
    zeros: float


def measure_errors(model: Path, output: Path) -> Errors:
    """Compare every weight that was quantized with its source.

    Args:
        model: The folder of the source, in safetensors.
        output: The folder that a tool wrote.

    Returns:
        The errors of what stands in the files, taken as int8 times scale in float32.

    Raises:
        ValueError: Nothing in the output is a quantized weight of the model.
    """
    source, made = read_tensors(model), read_tensors(output)
    weights = zeros = 0
    squares = difference_squares = largest = 0.0
    for name, tensor in source.items():
        decoded = decode(name, made)
        if decoded is None:
            continue
        for weight, values, scale in _chunks(tensor(), *decoded):
            difference = (values * scale).sub_(weight)
            squares += weight.square().sum(dtype=torch.float64).item()
            difference_squares += difference.square().sum(dtype=torch.float64).item()
            kept = values != 0
            steps = difference.div_(scale).abs_().mul_(kept)
            # A scale of zero belongs to a channel of zeros, all of which are left out.
            largest = max(largest, steps.nan_to_num_(0).max().item())
            weights += kept.numel()
            zeros += kept.numel() - int(kept.sum())
    if not weights:
        raise ValueError(f"{output.name} holds no quantized weight of {model.name}")
    return Errors(weights, (difference_squares / squares) ** 0.5, largest, zeros / weights)


def decode(name: str, made: Tensors) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Find a weight among the tensors of an output and unpack it.

    Args:
        name: The weight's name in the model.
        made: The output.

    Returns:
        Int8 values [O, I] and float32 scales [O, G], for G groups of equal size along the inputs;
        None where the weight is not quantized.
    """
    module = name.removesuffix(".weight")
    if f"{module}.weight_packed" in made:  # compressed-tensors, pack-quantized
        rows, columns = made[f"{module}.weight_shape"]().tolist()
        values = _unpack(made[f"{module}.weight_packed"]())[:rows, :columns]
        return values, _by_rows(made[f"{module}.weight_scale"]())
    if f"{name}._data" in made:  # optimum-quanto
        return made[f"{name}._data"](), _by_rows(made[f"{name}._scale"]())
    stored = made[name]() if name in made else None
    if hasattr(stored, "qdata"):  # torchao
        return stored.qdata, _by_rows(stored.scale)
    if stored is None or stored.dtype != torch.int8:
        return None
    if f"{module}.SCB" in made:  # bitsandbytes, which keeps the channel's largest magnitude
        return stored, _by_rows(made[f"{module}.SCB"]()) / 127
    return stored, _by_rows(made[f"{module}.weight_scale"]())  # compressed-tensors, int-quantized


def read_tensors(folder: Path) -> Tensors:
    """List a folder's tensors, of .safetensors files and of what torch.save wrote."""
    tensors: Tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        file = safe_open(path, "pt")
        tensors |= {name: (lambda f=file, n=name: f.get_tensor(n)) for name in file.keys()}  # noqa: SIM118 - not a dict
    for path in folder.glob("*.pt"):
        import torchao  # noqa: F401, PLC0415 - lets torch.load know its classes

        pickled = torch.load(path, mmap=True, weights_only=False)
        tensors |= {name: (lambda t=tensor: t) for name, tensor in pickled.items()}
    return tensors


def _unpack(packed: torch.Tensor) -> torch.Tensor:
    # Four to a word, the first in the lowest byte, 128 added to each.
    return packed.contiguous().view(torch.uint8).to(torch.int16).sub_(128).to(torch.int8)


def _by_rows(scale: torch.Tensor) -> torch.Tensor:
    return scale.float().reshape(scale.shape[0], -1)


def _chunks(
    weight: torch.Tensor, values: torch.Tensor, scale: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    groups = scale.shape[1]
    rows = max(1, _CHUNK_ELEMENTS // weight.shape[1])
    for row in range(0, len(weight), rows):
        part = slice(row, row + rows)
        yield (
            weight[part].float().unflatten(1, (groups, -1)),
            values[part].float().unflatten(1, (groups, -1)),
            scale[part].unsqueeze(2),
        )


def main() -> None:
    model, output = map(Path, sys.argv[1:])
    print(json.dumps(asdict(measure_errors(model, output))))


if __name__ == "__main__":
    main()
