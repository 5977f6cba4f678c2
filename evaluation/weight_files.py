"""Reads the weights of a checkpoint: floats as they are, int8 as the floats that they stand for."""

import mmap
import warnings
from pathlib import Path

import torch

from jobs.checkpoint import Checkpoint, Shard
from jobs.problems import Problem
from jobs.safetensors_header import TensorSpec
from planning.load_template import unpack
from planning.stored_weights import StoredWeight, stored_weights

#: By the names that safetensors has for them.
DTYPES = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
#: Of int8 values that are made floats at a time, so that nothing but the floats takes memory.
_CHUNK_BYTES = 1024**2


class WeightFiles:
    """The files of a checkpoint, by the names of its model's weights.

    Args:
        checkpoint: A model, or an artifact of it.

    Attributes:
        weights: Where each is.
    """

    weights: dict[str, StoredWeight]

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._folder = checkpoint.folder
        self.weights = stored_weights(checkpoint)
        self._maps: list[mmap.mmap] = []

    def dtype(self, name: str) -> torch.dtype:
        """Give the dtype of a tensor; of an int8 weight that of its scale."""
        return DTYPES[self.weights[name].tensor.dtype]

    def read(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        """Read a tensor into memory of its own.

        Args:
            name: Its name.
            dtype: What to give floats in.

        Returns:
            Its values. Of int8 they are those of compressed-tensors: the product of value and scale
            in `dtype`.
        """
        weight = self.weights[name]
        if weight.scale is None:
            return self._read_rows(weight.shard, weight.values).to(dtype)
        scale = self._read_rows(weight.shard, weight.scale).to(dtype)
        floats = torch.empty(weight.tensor.shape, dtype=dtype)
        rows = weight.values.shape[0]
        step = max(1, _CHUNK_BYTES * rows // max(1, weight.values.nbytes))
        for start in range(0, rows, step):
            count = min(step, rows - start)
            values = self._read_rows(weight.shard, weight.values, start, count)
            # Where channels are columns, one row of scales is that of all rows.
            own = scale[start : start + count] if len(scale) == rows else scale
            if weight.is_packed:
                part = unpack(values, [count, *floats.shape[1:]], own)
            else:
                part = values.to(dtype).mul_(own)
            floats[start : start + count] = part
        return floats

    def map(self, name: str) -> torch.Tensor:
        """Give a tensor that is stored as it is, without reading it.

        Args:
            name: Its name.

        Returns:
            Its values in pages of the file, which take memory once they are looked at. They must
            not be written to.
        """
        weight = self.weights[name]
        if not weight.values.nbytes:
            return self._read_rows(weight.shard, weight.values)
        start = weight.shard.header.data_start + weight.values.start
        inside = start % mmap.ALLOCATIONGRANULARITY
        with (self._folder / weight.shard.name).open("rb") as file:
            length = inside + weight.values.nbytes
            pages = mmap.mmap(file.fileno(), length, access=mmap.ACCESS_READ, offset=start - inside)
        self._maps.append(pages)
        dtype = DTYPES[weight.values.dtype]
        with warnings.catch_warnings():
            # torch says that it cannot be written to.
            warnings.simplefilter("ignore", UserWarning)
            values = torch.frombuffer(pages, dtype=torch.uint8, offset=inside)
        # Some files begin their tensors anywhere.
        aligned = values if start % dtype.itemsize == 0 else values.clone()
        return aligned.view(dtype).view(weight.values.shape)

    def forget(self) -> None:
        """Give the memory of mapped pages back; what is looked at again is read again."""
        for pages in self._maps:
            pages.madvise(mmap.MADV_DONTNEED)

    def _read_rows(
        self, shard: Shard, tensor: TensorSpec, first: int = 0, count: int | None = None
    ) -> torch.Tensor:
        """Read a tensor as it is stored, or so many of its rows."""
        shape = tensor.shape if count is None else (count, *tensor.shape[1:])
        values = torch.empty(shape, dtype=DTYPES[tensor.dtype])
        if values.numel():
            view = values.reshape(-1).view(torch.uint8).numpy().data
            row_bytes = tensor.nbytes // tensor.shape[0] if tensor.shape else 0
            start = shard.header.data_start + tensor.start + first * row_bytes
            _fill(self._folder / shard.name, start, view, tensor.name)
        return values


def _fill(path: Path, start: int, view: memoryview, name: str) -> None:
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while view.nbytes:
            got = file.readinto(view)
            if not got:
                raise Problem("invalid_checkpoint", f"{path.name} ended inside {name!r}.")
            view = view[got:]
