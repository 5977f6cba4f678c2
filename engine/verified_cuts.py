"""What a shrink step left out, checked against the model and against what the report says of it.

Which tensors are cut, and along what, is the plan's to say. What is checked anew is the rest: that
the report keeps as many of each layer as there should be, that config.json says the sizes that the
tensors have, and, through `CutFiles`, that every sampled value is the model's.
"""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.samples import TensorFiles, Values, floats_of
from jobs.checkpoint import Checkpoint
from jobs.problems import Problem
from jobs.ranges import numbers_of
from jobs.safetensors_header import TensorSpec
from jobs.shrunk import Shrunk
from planning.cuts import Shrinkage

#: By the name of a group, which of its heads or channels the report says are kept.
KeptNumbers = Mapping[str, list[int]]

#: What members of a config count.
_CHANNELS = {
    "intermediate_size",
    "n_inner",
    "d_ff",
    "hidden_dim",
    "ffn_dim",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
}
_LAYERS = {"num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_decoder_layers"}
#: How many heads there are, and groups of them, and of how many values: as most say it, or as T5.
_HEADS = {
    False: ("num_attention_heads", "num_key_value_heads", "head_dim"),
    True: ("num_heads", "num_heads", "d_kv"),
}
_LISTS = {"layer_types", "no_rope_layers", "mlp_layer_types"}


def kept_numbers(shrinkage: Shrinkage, shrunk: Shrunk | None) -> KeptNumbers:
    """Give what a report says is kept.

    Args:
        shrinkage: What was to be left of the model.
        shrunk: What the report says of it.

    Returns:
        The heads and channels that are kept, as many as there should be.

    Raises:
        Problem: `invalid_artifact`: the report says something else.
    """
    if shrunk is None:
        raise Problem("invalid_artifact", "The report does not say what was left out.")
    said = {one.name: one for one in shrunk.kept}
    counts = {group.name: group.count for group in shrinkage.groups}
    counts |= {path: count for path, (count, _) in shrinkage.layers.items()}
    if len(said) != len(shrunk.kept) or {n: one.count for n, one in said.items()} != counts:
        raise Problem("invalid_artifact", "The report speaks of other heads, channels or layers.")
    kept = {name: _numbers(name, one.kept, one.count) for name, one in said.items()}
    meant = {group.name: group.kept for group in shrinkage.groups}
    for name, number in meant.items():
        if len(kept[name]) != number:
            detail = f"The report keeps {len(kept[name])} of {name}, which should keep {number}."
            raise Problem("invalid_artifact", detail)
    for path, (_, layers) in shrinkage.layers.items():
        if kept[path] != list(layers):
            raise Problem("invalid_artifact", f"The report keeps other layers of {path}.")
    return {name: kept[name] for name in meant}


def _numbers(name: str, text: str, count: int) -> list[int]:
    try:
        return numbers_of(text, count)
    except ValueError as error:
        raise Problem("invalid_artifact", f"What the report keeps of {name}: {error}.") from error


class CutFiles:
    """Reads what is kept of a model's tensors, as `TensorFiles` reads all of them.

    Args:
        files: The model's files, open.
        shrinkage: What is left of the model.
        kept: Which heads and channels are kept.
    """

    def __init__(self, files: TensorFiles, shrinkage: Shrinkage, kept: KeptNumbers) -> None:
        self._files = files
        self._shrinkage = shrinkage
        self._kept = kept
        # A tensor is looked at in several places, one after the other.
        self._places = lru_cache(maxsize=1)(self._find_places)

    def read(
        self, tensor: TensorSpec, first: int, count: int, dtype: npt.DTypeLike
    ) -> npt.NDArray[Any]:
        """Read consecutive elements of one row of a tensor; see `TensorFiles.read`."""
        source = self._shrinkage.sources[tensor.name]
        cut = self._shrinkage.cuts.get(tensor.name)
        if cut is None:
            return self._files.read(source, first, count, dtype)
        places, columns = self._places(tensor.name), source.shape[-1]
        if cut.axis == 0 and len(source.shape) > 1:
            row, column = divmod(first, columns)
            return self._files.read(source, int(places[row]) * columns + column, count, dtype)
        row, column = divmod(first, len(places))
        wanted = places[column : column + count]
        low, high = int(wanted[0]), int(wanted[-1])
        span = self._files.read(source, row * columns + low, high - low + 1, dtype)
        found: npt.NDArray[Any] = span[wanted - low]
        return found

    def read_floats(self, tensor: TensorSpec, first: int, count: int) -> Values:
        """Read consecutive values of one row of a tensor; see `TensorFiles.read_floats`."""
        return floats_of(self, tensor, first, count)

    def _find_places(self, name: str) -> npt.NDArray[np.int64]:
        cut = self._shrinkage.cuts[name]
        return np.array(
            [
                part.start + unit * part.width + i
                for part in cut.parts
                for unit in self._kept[cut.group.name]
                for i in range(part.width)
            ]
        )


def check_sizes(artifact: Checkpoint, shrinkage: Shrinkage, kept: KeptNumbers) -> None:
    """Check that the artifact's config says the sizes that its tensors have.

    Args:
        artifact: The artifact.
        shrinkage: What was to be left of the model.
        kept: Which heads and channels are kept.

    Raises:
        Problem: `invalid_artifact`, with the member that says something else.
    """
    before, after = shrinkage.model.config or {}, artifact.config or {}
    kept_of = {
        unit: {len(kept[group.name]) for group in shrinkage.groups if group.unit == unit}
        for unit in ("heads", "channels")
    }
    layers = [numbers for _, numbers in shrinkage.layers.values()]
    own = {"auto_map", "quantization_config"}
    for key in sorted((before.keys() | after.keys()) - own):
        value, old = after.get(key), before.get(key)
        if json.dumps(value, sort_keys=True) == json.dumps(old, sort_keys=True):
            continue
        if not _is_meant(key, value, old, kept_of, layers):
            raise Problem("invalid_artifact", f"config.json: {key!r} is {value!r}.")
    _check_heads(artifact, shrinkage)


def _is_meant(
    key: str,
    value: object,
    old: Any,  # noqa: ANN401 - JSON
    kept_of: Mapping[str, set[int]],
    layers: list[tuple[int, ...]],
) -> bool:
    if key in _LISTS:
        return value in [[old[number] for number in numbers] for numbers in layers]
    if type(value) is not int:
        return False
    if key in _CHANNELS:
        return value in kept_of["channels"]
    if key in _LAYERS:
        return value in map(len, layers)
    if key in {"num_key_value_heads", "num_heads"}:
        return value in kept_of["heads"]
    return key in {"num_attention_heads", "head_dim"} and bool(kept_of["heads"])


def _check_heads(artifact: Checkpoint, shrinkage: Shrinkage) -> None:
    config = artifact.config or {}
    for name, cut in shrinkage.cuts.items():
        if cut.group.unit != "heads":
            continue
        heads, groups, size = (config[key] for key in _HEADS["num_heads" in config])
        sizes = {heads * size, groups * size, (heads + 2 * groups) * size}
        if name.endswith(".relative_attention_bias.weight"):
            sizes = {heads}
        # Where it is packed, its shape is another one, and checked with it.
        spec = artifact.tensors.get(name)
        if spec is not None and spec.shape[cut.axis] not in sizes:
            detail = f"config.json has {heads} heads of {size} values, which {name} has not."
            raise Problem("invalid_artifact", detail)
