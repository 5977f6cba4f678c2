"""The files of an artifact beside its tensors, compared with those of the model.

What loaders read is spelled out here again rather than asked of the code that wrote it.
"""

import json
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.verified_forms import Form, wrong
from jobs.checkpoint import INDEX_NAME, Checkpoint, open_checkpoint, read_json
from jobs.problems import Problem
from jobs.recipe import Recipe
from jobs.safetensors_header import DTYPE_BYTES
from jobs.steps import QuantizeStep
from planning.side_files import find_side_files
from planning.texts import loader_text

_CONFIG = "config.json"
_LOADER = "load.py"
_FORMATS = {"w8a16": "pack-quantized", "w8a8": "int-quantized"}
_NUMBER = {"num_bits": 8, "type": "int", "symmetric": True}
#: Of a copied file that is longer than all pieces together, only so many are compared.
_PIECE_BYTES = 64 * 1024
_MOST_PIECES = 256


def open_artifact(folder: Path) -> Checkpoint:
    """Open an artifact as the checkpoint that it must be.

    Args:
        folder: The artifact.

    Returns:
        The checkpoint. No file of it is a link or anything else that is not a plain file.

    Raises:
        Problem: `invalid_artifact`.
    """
    for root, folders, files in os.walk(folder, followlinks=False):
        for name in (*folders, *files):
            mode = (Path(root) / name).lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise Problem("invalid_artifact", f"{name!r} is neither a file nor a folder.")
    try:
        return open_checkpoint(folder)
    except Problem as problem:
        raise Problem("invalid_artifact", problem.detail, errors=problem.errors) from problem


def check_files(
    model: Checkpoint, artifact: Checkpoint, forms: Sequence[Form], recipe: Recipe
) -> None:
    """Check everything in an artifact but the data of its tensors.

    Args:
        model: The model.
        artifact: The artifact.
        forms: What became of the model's tensors.
        recipe: What was to be done.

    Raises:
        Problem: `invalid_artifact`: a file is missing, too many, or not what a loader expects.
    """
    quantized = [form for form in forms if form.scale is not None]
    wanted = recipe.output.format
    is_for_loaders = bool(quantized) and (
        wanted == "compressed-tensors" or (wanted == "auto" and model.config is not None)
    )
    copied = set(find_side_files(model.others))
    expected = copied | ({_CONFIG} if model.config is not None else set())
    if len(model.shards) > 1 or INDEX_NAME in model.others:
        expected.add(INDEX_NAME)
    if not is_for_loaders and (quantized or model.config is None):
        expected.add(_LOADER)
    _check_names(set(artifact.others), expected)
    _check_headers(model, artifact)
    _check_config(model, artifact, quantized if is_for_loaders else [], recipe)
    if INDEX_NAME in expected:
        _check_index(artifact)
    if _LOADER in expected and (artifact.folder / _LOADER).read_bytes() != loader_text().encode():
        raise Problem("invalid_artifact", f"{_LOADER} is not the loader that was to be written.")
    for name in sorted(copied):
        _check_copy(name, model, artifact)


def _check_names(found: set[str], expected: set[str]) -> None:
    if missing := sorted(expected - found):
        raise Problem("invalid_artifact", f"{missing[0]!r} is not in the artifact.")
    if strange := sorted(found - expected):
        raise Problem("invalid_artifact", f"{strange[0]!r} is in the artifact, and should not be.")


def _check_headers(model: Checkpoint, artifact: Checkpoint) -> None:
    names = [shard.name for shard in model.shards]
    if [shard.name for shard in artifact.shards] != names:
        raise Problem("invalid_artifact", f"The safetensors files are not {', '.join(names)}.")
    for before, after in zip(model.shards, artifact.shards, strict=True):
        # transformers opens only files that name the framework whose tensors they hold.
        if after.header.metadata != {**before.header.metadata, "format": "pt"}:
            raise Problem("invalid_artifact", f"{after.name} has other metadata than the model.")
        for tensor in after.header.tensors:
            if (after.header.data_start + tensor.start) % DTYPE_BYTES[tensor.dtype]:
                raise wrong(tensor.name, "does not start at a multiple of its elements' size")


def _check_index(artifact: Checkpoint) -> None:
    """Check what `open_checkpoint` does not: it compares the names and their files."""
    index = read_json(artifact.folder / INDEX_NAME, "invalid_artifact") or {}
    metadata = {"total_size": sum(tensor.nbytes for tensor in artifact.tensors.values())}
    if index.get("metadata") != metadata or set(index) != {"metadata", "weight_map"}:
        raise Problem("invalid_artifact", f"The metadata of {INDEX_NAME} are not {metadata}.")


def _check_config(
    model: Checkpoint, artifact: Checkpoint, quantized: Sequence[Form], recipe: Recipe
) -> None:
    before, after = (dict(checkpoint.config or {}) for checkpoint in (model, artifact))
    # It names code of a stranger to run.
    before.pop("auto_map", None)
    found = after.pop("quantization_config", None)
    for key in sorted(before.keys() | after.keys()):
        # As text, in which a NaN equals itself.
        if key not in before or key not in after or _text(before[key]) != _text(after[key]):
            raise Problem("invalid_artifact", f"{_CONFIG}: {key!r} is not as in the model.")
    step = recipe.steps[-1]
    if not (quantized and isinstance(step, QuantizeStep)):
        if found is not None:
            raise Problem("invalid_artifact", f"{_CONFIG} has a quantization_config.")
        return
    names = _groups_of(found)
    meant = _groups_meant(names, quantized, step)
    difference = _difference(found, _quantization(step, meant), "quantization_config")
    if difference is None and names != meant:
        difference = f"config_groups are {sorted(names)}, not {sorted(meant)}"
    if difference is not None:
        raise Problem("invalid_artifact", f"{_CONFIG}: {difference}.")
    for form in quantized:
        if form.source.name.removesuffix(".weight") in (found or {}).get("ignore", ()):
            raise wrong(form.source.name, f"is int8, and {_CONFIG} says that it stays float")


def _groups_of(found: object) -> set[str]:
    groups = found.get("config_groups") if isinstance(found, dict) else None
    return set(groups) if isinstance(groups, dict) else set()


def _groups_meant(found: set[str], quantized: Sequence[Form], step: QuantizeStep) -> set[str]:
    """Give the names of the groups that there must be."""
    if step.scheme == "w8a16":
        return {"group_1" if form.is_row_wise(step) else "group_0" for form in quantized}
    # Int8 tensors of this scheme look alike: the config alone says which of them are embeddings.
    return found & {"group_0", "group_1"} or {"group_0"} if step.embeddings else {"group_0"}


def _quantization(step: QuantizeStep, names: set[str]) -> dict[str, Any]:
    """Give the members by which compressed-tensors knows what the int8 tensors mean."""
    groups = {
        name: group
        for name, group in (("group_0", _linears(step)), ("group_1", _embeddings()))
        if name in names
    }
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
    }


def _linears(step: QuantizeStep) -> dict[str, Any]:
    activations = {**_NUMBER, "dynamic": True, "strategy": "token"}
    weights = {
        **_NUMBER,
        "dynamic": False,
        "actorder": None,
        "strategy": "channel" if step.group_size is None else "group",
        "group_size": step.group_size,
    }
    return {
        "format": _FORMATS[step.scheme],
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations if step.scheme == "w8a8" else None,
        "output_activations": None,
    }


def _embeddings() -> dict[str, Any]:
    return {
        "format": "int-quantized",
        "targets": ["Embedding"],
        "weights": {**_NUMBER, "dynamic": False, "strategy": "channel", "group_size": None},
        "input_activations": None,
        "output_activations": None,
    }


def _difference(found: object, meant: object, path: str) -> str | None:
    """Say where JSON lacks what is meant; members that are not spoken of may be anything."""
    if not (isinstance(found, dict) and isinstance(meant, dict)):
        return None if found == meant else f"{path} is {found!r}, not {meant!r}"
    differences = (_difference(found.get(key), meant[key], f"{path}.{key}") for key in meant)
    return next((difference for difference in differences if difference), None)


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True)


def _check_copy(name: str, model: Checkpoint, artifact: Checkpoint) -> None:
    nbytes = model.others[name]
    pieces = -(-nbytes // _PIECE_BYTES)
    is_equal = artifact.others[name] == nbytes
    with (model.folder / name).open("rb") as before, (artifact.folder / name).open("rb") as after:
        for piece in range(0, pieces, max(1, pieces // _MOST_PIECES)):
            before.seek(piece * _PIECE_BYTES)
            after.seek(piece * _PIECE_BYTES)
            is_equal &= before.read(_PIECE_BYTES) == after.read(_PIECE_BYTES)
    if not is_equal:
        raise Problem("invalid_artifact", f"{name!r} is not the model's.")
