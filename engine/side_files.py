"""What stands beside the weights: the config, the tokenizer, the index and the loader."""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from engine.module_kinds import ModuleKinds
from engine.plan import ShardPlan
from engine.selection import Selection
from jobs.checkpoint import INDEX_NAME, Checkpoint

#: Data that loaders read; code and pickles are never among it.
_SIDE_FILES = (
    "tokenizer*",
    "*.json",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "*.jinja",
    "*.md",
    "LICEN[CS]E*",
    "NOTICE*",
)
_CODE_AND_PICKLES = ("*.py", "*.pyc", "*.pkl", "*.pickle", "*.pt", "*.pth", "*.bin", "*.so")
#: Written by the job or after it.
_OURS = frozenset({"config.json", INDEX_NAME, "manifest.json"})
_LOADER = Path(__file__).with_name("load_template.py")
_FORMATS = {"w8a16": "pack-quantized", "w8a8": "int-quantized"}


def find_side_files(folder: Path) -> Iterator[Path]:
    """Yield the files that are copied unchanged, relative to the folder, in a fixed order.

    Args:
        folder: The model.

    Yields:
        Tokenizer, text and JSON files, those of sub-folders included. Weights of sub-folders are
        copied too, where they are safetensors: parts of a pipeline that this job leaves alone.
    """
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in relative.parts)
        if is_hidden or path.is_symlink() or not path.is_file() or str(relative) in _OURS:
            continue
        name = path.name
        if any(fnmatchcase(name, pattern) for pattern in _CODE_AND_PICKLES):
            continue
        if name.endswith(".bin.index.json"):
            continue
        is_nested_weight = len(relative.parts) > 1 and name.endswith(".safetensors")
        if is_nested_weight or any(fnmatchcase(name, pattern) for pattern in _SIDE_FILES):
            yield relative


def copy_side_files(source: Path, target: Path, files: Iterable[Path]) -> None:
    """Copy files, making the folders they need."""
    for relative in files:
        place = target / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / relative, place, follow_symlinks=False)


def index_text(shards: tuple[ShardPlan, ...]) -> str:
    """Give the index, which says in which file a tensor lies."""
    weight_map = {name: shard.source.name for shard in shards for name in shard.names}
    index = {
        "metadata": {"total_size": sum(shard.tensor_bytes for shard in shards)},
        "weight_map": dict(sorted(weight_map.items())),
    }
    return json.dumps(index, indent=2) + "\n"


def config_text(
    checkpoint: Checkpoint, kinds: ModuleKinds, selection: Selection, output_format: str
) -> str:
    """Give the artifact's config.json.

    Args:
        checkpoint: The model, with a config.
        kinds: Its modules.
        selection: What the job changed.
        output_format: ``compressed-tensors`` tells loaders that weights are int8.

    Returns:
        The model's own members, without ``auto_map``, which would name code to run.
    """
    config = {key: v for key, v in (checkpoint.config or {}).items() if key != "auto_map"}
    schemes = {t.model_module: t.scheme for t in selection.targets.values() if t.scheme}
    if output_format == "compressed-tensors":
        linears = [name for name, kind in kinds.kinds.items() if kind == "Linear"]
        left = [name for name in linears if name not in schemes]
        # AutoModel opens the base model alone, whose modules have no prefix.
        base = f"{kinds.prefix}."
        left += [name.removeprefix(base) for name in left if name.startswith(base)]
        config["quantization_config"] = _quantization_config(next(iter(schemes.values())), left)
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def loader_text() -> str:
    """Give load.py, which needs torch and safetensors alone."""
    return _LOADER.read_text(encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a file and have the disk keep it."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _quantization_config(scheme: str, ignore: list[str]) -> dict[str, Any]:
    """Give the members that compressed-tensors reads; it refuses any other."""
    numbers: dict[str, Any] = {
        "actorder": None,
        "block_structure": None,
        "group_size": None,
        "num_bits": 8,
        "observer_kwargs": {},
        "symmetric": True,
        "type": "int",
    }
    weights = {**numbers, "dynamic": False, "observer": "minmax", "strategy": "channel"}
    per_token = {**numbers, "dynamic": True, "observer": None, "strategy": "token"}
    return {
        "config_groups": {
            "group_0": {
                "format": _FORMATS[scheme],
                "input_activations": per_token if scheme == "w8a8" else None,
                "output_activations": None,
                "targets": ["Linear"],
                "weights": weights,
            }
        },
        "format": _FORMATS[scheme],
        "global_compression_ratio": None,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "transform_config": {},
        "version": "0.18.0",
    }
