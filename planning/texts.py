"""What is written beside the weights: the config, the index and the loader."""

import json
from pathlib import Path
from typing import Any

from jobs.checkpoint import Checkpoint
from planning.layout import ShardPlan
from planning.module_kinds import ModuleKinds
from planning.selection import Selection, Target

_LOADER = Path(__file__).with_name("load_template.py")


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
    quantized = {t.model_module: t for t in selection.targets.values() if t.scheme}
    if output_format == "compressed-tensors":
        taken = {_kind_of(target) for target in quantized.values()}
        left = [n for n, kind in kinds.kinds.items() if kind in taken and n not in quantized]
        # AutoModel opens the base model alone, whose modules have no prefix.
        base = f"{kinds.prefix}."
        left += [name.removeprefix(base) for name in left if name.startswith(base)]
        config["quantization_config"] = _quantization_config(list(quantized.values()), left)
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def loader_text() -> str:
    """Give load.py, which needs torch and safetensors alone."""
    return _LOADER.read_text(encoding="utf-8")


def _kind_of(target: Target) -> str:
    return "Embedding" if target.is_embedding else "Linear"


def _quantization_config(targets: list[Target], ignore: list[str]) -> dict[str, Any]:
    """Give the members that compressed-tensors reads; it refuses any other."""
    # One of each kind speaks for all of them.
    groups = {f"group_{int(t.is_embedding)}": _group(t) for t in targets}
    formats = {group["format"] for group in groups.values()}
    return {
        "config_groups": dict(sorted(groups.items())),
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "global_compression_ratio": None,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "transform_config": {},
        "version": "0.18.0",
    }


def _group(target: Target) -> dict[str, Any]:
    numbers: dict[str, Any] = {
        "actorder": None,
        "block_structure": None,
        "group_size": None,
        "num_bits": 8,
        "observer_kwargs": {},
        "symmetric": True,
        "type": "int",
    }
    weights = {
        **numbers,
        "dynamic": False,
        "group_size": target.group_size,
        "observer": "minmax",
        "strategy": "channel" if target.group_size is None else "group",
    }
    per_token = {**numbers, "dynamic": True, "observer": None, "strategy": "token"}
    has_activations = target.scheme == "w8a8" and not target.is_embedding
    return {
        "format": "pack-quantized" if target.is_packed else "int-quantized",
        "input_activations": per_token if has_activations else None,
        "output_activations": None,
        "targets": [_kind_of(target)],
        "weights": weights,
    }
