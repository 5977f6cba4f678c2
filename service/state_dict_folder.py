"""The state dicts in an unpacked archive, such as an older transformers folder, as safetensors."""

import json
import re
from pathlib import Path
from typing import Any

from jobs.checkpoint import INDEX_NAME, SINGLE_NAME, read_json
from jobs.problems import Problem
from service.entries import PICKLE_SUFFIXES
from service.formats import HOW_TO_CONVERT, unsupported
from service.state_dict import convert, is_torch_save
from service.zip_archive import open_zip

_OLD_STEM, _NEW_STEM = "pytorch_model", "model"
_SHARD = re.compile(rf"{_OLD_STEM}-\d+-of-\d+\.bin")
_OLD_INDEX_NAME = "pytorch_model.bin.index.json"


def convert_folder(folder: Path, max_bytes: int) -> list[str]:
    """Turn the state dicts in a folder into the shards of one checkpoint, and remove them.

    Args:
        folder: The files of an archive, without safetensors.
        max_bytes: The most bytes that the shards may have together.

    Returns:
        What stood beside the tensors and is left out: an entry's file and name.

    Raises:
        Problem: As `state_dict.convert`; also `unsupported_format` where a file is no state dict,
            or several are no shards of one.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix in PICKLE_SUFFIXES)
    # Beside the weights, trainers leave their arguments and optimizers.
    chosen = [path for path in paths if path.name == f"{_OLD_STEM}.bin"] or paths
    chosen = [path for path in paths if _SHARD.fullmatch(path.name)] or chosen
    if len(chosen) > 1 and not all(_SHARD.fullmatch(path.name) for path in chosen):
        names = ", ".join(path.name for path in chosen[:3])
        raise unsupported(f"an archive of several state dicts ({names})", HOW_TO_CONVERT)
    ignored = [str(path.relative_to(folder)) for path in paths if path not in chosen]
    for path in chosen:
        target = path.with_name(_new_name(path.name) if len(chosen) > 1 else SINGLE_NAME)
        left_out = _convert_file(path, target, max_bytes)
        max_bytes -= target.stat().st_size
        ignored += [f"{path.name}: {name}" for name in left_out]
    for path in paths:
        path.unlink()
    _rewrite_index(folder)
    return ignored


def _convert_file(path: Path, target: Path, max_bytes: int) -> list[str]:
    with path.open("rb") as file:
        is_zip = file.read(4) == b"PK\x03\x04"
    if is_zip:
        with open_zip(path) as archive:
            if is_torch_save(archive):
                return convert(archive, path, target, max_bytes)
    raise unsupported(
        f"an archive with {path.name}, which is no state dict of torch.save since 1.6",
        HOW_TO_CONVERT,
    )


def _new_name(name: str) -> str:
    return Path(name.replace(_OLD_STEM, _NEW_STEM, 1)).with_suffix(".safetensors").name


def _rewrite_index(folder: Path) -> None:
    path = folder / _OLD_INDEX_NAME
    index = read_json(path, "invalid_checkpoint")
    if index is None:
        return
    path.unlink()
    weight_map: Any = index.get("weight_map")
    if (folder / SINGLE_NAME).exists():
        return
    if not isinstance(weight_map, dict) or not all(
        isinstance(file, str) and _SHARD.fullmatch(file) for file in weight_map.values()
    ):
        raise Problem("invalid_checkpoint", f"{_OLD_INDEX_NAME} has no weight_map of shards.")
    renamed = {name: _new_name(file) for name, file in weight_map.items()}
    (folder / INDEX_NAME).write_text(json.dumps({**index, "weight_map": renamed}))
