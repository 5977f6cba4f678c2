"""The artifact's files before a byte of data is read: names, dtypes, shapes and offsets.

What an int8 weight becomes is the layout of compressed-tensors, of the formats ``pack-quantized``
(w8a16) and ``int-quantized`` (w8a8, and embeddings of either); convolutions and Conv1D follow the
same pattern.
"""

import math
from dataclasses import dataclass

from jobs.checkpoint import Checkpoint, Shard
from jobs.safetensors_header import DTYPE_BYTES, TensorSpec, encode_header
from planning.selection import Selection, Target


@dataclass(frozen=True)
class Placement:
    """One tensor that comes in, and what becomes of it.

    Attributes:
        source: The tensor in its file.
        target: What the job does to it; None copies it.
        outputs: What is written, by role: ``weight``, and for int8 ``scale``, and for packed int8
            ``shape``.
        row_bytes: How many bytes one row of the written weight takes, padding included.
    """

    source: TensorSpec
    target: Target | None
    outputs: dict[str, TensorSpec]
    row_bytes: int


@dataclass(frozen=True)
class ShardPlan:
    """One file of the artifact.

    Attributes:
        source: The file it is made from; both have the same name.
        header: Its first bytes.
        placements: Its tensors in the order in which they are read.
        nbytes: Its size.
    """

    source: Shard
    header: bytes
    placements: tuple[Placement, ...]
    nbytes: int

    @property
    def tensor_bytes(self) -> int:
        """How many bytes its tensors take."""
        return self.nbytes - len(self.header)

    @property
    def names(self) -> list[str]:
        """The names of its tensors."""
        return [output.name for p in self.placements for output in p.outputs.values()]


def plan_shards(checkpoint: Checkpoint, selection: Selection) -> tuple[ShardPlan, ...]:
    """Lay out every file of the artifact.

    Args:
        checkpoint: The model.
        selection: What changes.

    Returns:
        One plan per file. Every tensor starts at a multiple of its element's size, because wider
        elements come first.
    """
    return tuple(_plan_shard(shard, selection) for shard in checkpoint.shards)


def _plan_shard(shard: Shard, selection: Selection) -> ShardPlan:
    unplaced = [_place(t, selection.targets.get(t.name)) for t in shard.header.tensors]
    outputs = [output for placement in unplaced for output in placement.outputs.values()]
    starts: dict[str, TensorSpec] = {}
    offset = 0
    for output in sorted(outputs, key=lambda output: -DTYPE_BYTES[output.dtype]):
        starts[output.name] = TensorSpec(output.name, output.dtype, output.shape, offset)
        offset += output.nbytes
    placements = tuple(
        Placement(
            p.source,
            p.target,
            {role: starts[output.name] for role, output in p.outputs.items()},
            p.row_bytes,
        )
        for p in unplaced
    )
    # transformers opens only files that name the framework whose tensors they hold.
    metadata = {**shard.header.metadata, "format": "pt"}
    header = encode_header(starts.values(), dict(sorted(metadata.items())))
    return ShardPlan(shard, header, placements, len(header) + offset)


def _place(source: TensorSpec, target: Target | None) -> Placement:
    if target is None or target.scheme is None:
        row = math.prod(source.shape[1:]) if len(source.shape) > 1 else source.elements
        return Placement(source, target, {"weight": source}, row * DTYPE_BYTES[source.dtype])
    rows, columns = source.shape[0], math.prod(source.shape[1:])
    packed_columns = -(-columns // 4)
    if not target.is_packed:
        scale_rank = len(source.shape)
        outputs = {"weight": TensorSpec(source.name, "I8", source.shape, 0)}
    else:
        scale_rank = 2
        outputs = {
            "weight": TensorSpec(f"{source.name}_packed", "I32", (rows, packed_columns), 0),
            "shape": TensorSpec(f"{source.name}_shape", "I64", (len(source.shape),), 0),
        }
    outputs["scale"] = TensorSpec(
        f"{source.name}_scale", source.dtype, _scale_shape(target, scale_rank), 0
    )
    row_bytes = 4 * packed_columns if target.is_packed else columns
    return Placement(source, target, outputs, row_bytes)


def _scale_shape(target: Target, rank: int) -> tuple[int, ...]:
    matrix = target.matrix
    if target.group_size is not None:
        return (matrix.channels, matrix.inputs // target.group_size)
    ones = (1,) * (rank - 1)
    return (*ones, matrix.channels) if matrix.is_transposed else (matrix.channels, *ones)
