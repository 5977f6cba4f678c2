"""Tensors written to safetensors files and read back into those that are there."""

import os
from collections.abc import Mapping
from pathlib import Path

import torch

from jobs.problems import Problem
from jobs.safetensors_header import TensorSpec, encode_header, read_header

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors to a new file.

    Args:
        path: Where; what is there is replaced.
        tensors: By name; those that are on a device are copied one after the other.
    """
    specs = []
    start = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: -item[1].element_size()):
        specs.append(TensorSpec(name, DTYPES[tensor.dtype], tuple(tensor.shape), start))
        start += tensor.nbytes
    with path.open("wb", buffering=0) as file:
        write_all(file.fileno(), encode_header(specs, {"format": "pt"}))
        for spec in specs:
            write_all(file.fileno(), bytes_of(tensors[spec.name]))


def read_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Read a file's tensors into those that are there.

    Those that lie in order on the host are read in place; of others there is a copy of one.

    Args:
        path: A file that `write_tensors` wrote.
        tensors: As many, by name, of the same dtypes and shapes.

    Raises:
        Problem: `invalid_checkpoint`: the file holds others.
    """
    header = read_header(path)
    specs = {spec.name: spec for spec in header.tensors}
    if specs.keys() != tensors.keys():
        raise Problem("invalid_checkpoint", f"{path.name} holds other tensors than are trained.")
    with path.open("rb", buffering=0) as file:
        for name, tensor in tensors.items():
            spec = specs[name]
            if (spec.dtype, spec.shape) != (DTYPES[tensor.dtype], tuple(tensor.shape)):
                raise Problem("invalid_checkpoint", f"{name!r} of {path.name} is of another shape.")
            place = header.data_start + spec.start
            if tensor.device.type == "cpu" and tensor.is_contiguous():
                _read_all(file.fileno(), bytes_of(tensor), place)
                continue
            read = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
            _read_all(file.fileno(), bytes_of(read), place)
            with torch.no_grad():
                tensor.copy_(read)


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """Give the bytes of a tensor, of one on the host without copying them."""
    plain = tensor.detach().contiguous().cpu().reshape(-1)
    return plain.view(torch.uint8).numpy().data if plain.numel() else memoryview(b"")


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write all of it where the file stands."""
    view = memoryview(data)
    while view.nbytes:
        view = view[os.write(descriptor, view) :]


def write_at(descriptor: int, data: memoryview, start: int) -> None:
    """Write all of it at a place of the file."""
    while data.nbytes:
        done = os.pwrite(descriptor, data, start)
        data, start = data[done:], start + done


def _read_all(descriptor: int, view: memoryview, start: int) -> None:
    while view.nbytes:
        got = os.preadv(descriptor, [view], start)
        if not got:
            raise Problem("invalid_checkpoint", "A file of tensors ended early.")
        view, start = view[got:], start + got
