"""The weights of a checkpoint by the names that its model has for them, floats or int8.

An artifact holds int8 as `planning.layout` lays it out: values with their scales beside them, and
four of them in an int32 where they are packed.
"""

import struct
from dataclasses import dataclass, replace
from pathlib import Path

from jobs.checkpoint import Checkpoint, Shard
from jobs.problems import Problem
from jobs.safetensors_header import TensorSpec

_PACKED = "_packed"
_SCALE = "_scale"
_SHAPE = "_shape"


@dataclass(frozen=True)
class StoredWeight:
    """A tensor of a model, and where a checkpoint holds it.

    Attributes:
        tensor: As the model holds it; an int8 weight has the dtype of its scale.
        shard: The file.
        values: What is stored of it: itself, its int8 values, or four of them in each int32.
        scale: The scales of int8 values, in the same file; None where it is stored as it is.
    """

    tensor: TensorSpec
    shard: Shard
    values: TensorSpec
    scale: TensorSpec | None = None

    @property
    def is_packed(self) -> bool:
        """Whether an int32 holds four of its values."""
        return self.values.name != self.tensor.name


def stored_weights(checkpoint: Checkpoint) -> dict[str, StoredWeight]:
    """Find where a checkpoint holds its model's tensors.

    Args:
        checkpoint: A model, or an artifact of it.

    Returns:
        Each by its name in the model as it was before it was quantized.

    Raises:
        Problem: `invalid_checkpoint`: the shape of a packed weight is not what its values are.
    """
    found: dict[str, StoredWeight] = {}
    for shard in checkpoint.shards:
        own = {tensor.name: tensor for tensor in shard.header.tensors}
        for name, tensor in own.items():
            weight = name.removesuffix(_PACKED)
            scale = own.get(f"{weight}{_SCALE}")
            if scale is not None and (weight != name or tensor.dtype == "I8"):
                shape = tensor.shape
                if weight != name:
                    shape = _read_shape(checkpoint.folder, shard, own, weight)
                floats = TensorSpec(weight, scale.dtype, shape, tensor.start)
                found[weight] = StoredWeight(floats, shard, tensor, scale)
            elif not _belongs_to_int8(name, own):
                found[name] = StoredWeight(tensor, shard, tensor)
    return found


def as_floats(checkpoint: Checkpoint) -> Checkpoint:
    """Give a checkpoint as it would be if none of its weights were int8.

    Args:
        checkpoint: A model, or an artifact of it.

    Returns:
        One of the same files, with tensors by the names and shapes that they have in the model;
        nothing can be read by it.

    Raises:
        Problem: As of `stored_weights`.
    """
    weights = stored_weights(checkpoint).values()
    shards = (
        replace(
            shard,
            header=replace(
                shard.header,
                tensors=tuple(w.tensor for w in weights if w.shard.name == shard.name),
            ),
        )
        for shard in checkpoint.shards
    )
    return replace(checkpoint, shards=tuple(shards))


def _belongs_to_int8(name: str, own: dict[str, TensorSpec]) -> bool:
    weight = name.removesuffix(_SCALE).removesuffix(_SHAPE)
    if weight == name:
        return False
    is_int8 = weight in own and own[weight].dtype == "I8"
    return f"{weight}{_PACKED}" in own or is_int8


def _read_shape(
    folder: Path, shard: Shard, own: dict[str, TensorSpec], weight: str
) -> tuple[int, ...]:
    stored, packed = own.get(f"{weight}{_SHAPE}"), own[f"{weight}{_PACKED}"]
    if stored is None or stored.dtype != "I64" or len(stored.shape) != 1:
        raise Problem("invalid_checkpoint", f"{shard.name} has no shape of {weight!r}.")
    with (folder / shard.name).open("rb") as file:
        file.seek(shard.header.data_start + stored.start)
        raw = file.read(stored.nbytes)
    if len(raw) != stored.nbytes:
        raise Problem("invalid_checkpoint", f"{shard.name} ended inside {stored.name!r}.")
    shape = struct.unpack(f"<{stored.elements}q", raw)
    columns = 1
    for size in shape[1:]:
        columns *= size
    is_right = min(shape, default=0) > 0 and packed.shape == (shape[0], -(-columns // 4))
    if not is_right or packed.dtype != "I32":
        raise Problem(
            "invalid_checkpoint",
            f"{shard.name} has {packed.name!r} of {list(packed.shape)}, and says that the weight "
            f"is of {list(shape)}.",
        )
    return shape
