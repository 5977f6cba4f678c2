"""Which kind of module every weight of a transformers model belongs to.

The names in a checkpoint do not tell a Linear [out, in] from GPT-2's Conv1D [in, out], nor which
weights are tied. The model does. Where `planning.architectures` does not know it, it is built from
its config on the meta device, which holds shapes but no values. That needs torch and transformers,
and trusts neither to be small nor the config to be harmless, so it happens in a process of its own,
with limits and without the network; this module imports neither of them until it is that process.
"""

import contextlib
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.memory import own_peak_bytes
from jobs.checkpoint import Checkpoint
from jobs.parent_death import end_with_parent
from jobs.problems import Problem
from planning.architectures import known_kinds
from planning.module_kinds import ModuleKinds

_MEMORY_BYTES = 4 * 1024**3
_SECONDS = 60
_MAX_LAYERS = 2048
#: What a config could name to have code fetched or run, or its weights replaced.
_UNTRUSTED_KEYS = ("auto_map", "attn_implementation", "_attn_implementation", "quantization_config")
_LAYER_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers")


def find_module_kinds(checkpoint: Checkpoint) -> ModuleKinds | None:
    """Say what a checkpoint's model is made of, by the table where it knows, else by the model.

    Args:
        checkpoint: The model.

    Returns:
        What its own code says; None where it has no config.

    Raises:
        Problem: As `read_module_kinds`.
    """
    if checkpoint.config is None:
        return None
    return known_kinds(checkpoint) or read_module_kinds(checkpoint.config, checkpoint.tensors)


def read_module_kinds(config: dict[str, Any], names: Iterable[str] = ()) -> ModuleKinds:
    """Build a config's model without values, in a process of its own, and look at its modules.

    Args:
        config: The members of config.json.
        names: The names of the checkpoint's tensors.

    Returns:
        Its modules' kinds, and what becomes of those names.

    Raises:
        Problem: `unknown_architecture`: the config names no class that the installed transformers
            has, cannot be built, or needs more than a minute or 4 GiB. `invalid_config`: the config
            asks for an absurd size.
    """
    _refuse_absurd_sizes(config)
    try:
        child = subprocess.run(
            [sys.executable, "-m", "engine.inspection"],
            input=json.dumps({"config": config, "names": sorted(names)}).encode(),
            capture_output=True,
            timeout=_SECONDS,
            check=False,
            env={
                "HF_HUB_OFFLINE": "1",
                "TRANSFORMERS_OFFLINE": "1",
                "TRANSFORMERS_VERBOSITY": "error",
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(Path(__file__).parent.parent),
            },
        )
    except subprocess.TimeoutExpired:
        raise _unknown(config, f"the model was not built within {_SECONDS} s") from None
    if child.returncode != 0:
        lines = child.stderr.decode(errors="replace").strip().splitlines()
        raise _unknown(config, lines[-1][:500] if lines else f"exit code {child.returncode}")
    answer = json.loads(child.stdout)
    sets = {key: frozenset(answer[key]) for key in ("merged", "named_weights")}
    return ModuleKinds(**(answer | sets))


def _refuse_absurd_sizes(config: dict[str, Any]) -> None:
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in _LAYER_KEYS:
            layers = part.get(key)
            if isinstance(layers, int) and layers > _MAX_LAYERS:
                raise Problem(
                    "invalid_config", f"{key} is {layers}; at most {_MAX_LAYERS} are accepted."
                )


def _unknown(config: dict[str, Any], reason: str) -> Problem:
    return Problem(
        "unknown_architecture",
        f"The model of config.json (model_type {config.get('model_type')!r}, architectures "
        f"{config.get('architectures')!r}) cannot be built: {reason}. Leave config.json out to "
        "have the tensors compressed by their names and shapes.",
    )


def _describe(config: dict[str, Any], names: list[str]) -> dict[str, Any]:
    import torch  # noqa: PLC0415 - only the separate process may import torch
    import transformers  # noqa: PLC0415
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: PLC0415

    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else ""
    model_class = getattr(transformers, str(name), None)
    if not (
        isinstance(model_class, type) and issubclass(model_class, transformers.PreTrainedModel)
    ):
        raise SystemExit(f"transformers {transformers.__version__} has no model class {name!r}")
    if config.get("model_type") not in CONFIG_MAPPING:
        raise SystemExit(f"transformers {transformers.__version__} does not know this model_type")
    members = {key: value for key, value in config.items() if key not in _UNTRUSTED_KEYS}
    with torch.device("meta"):
        model = model_class(CONFIG_MAPPING[config["model_type"]].from_dict(members))
    return {**describe(model, names), "peak_bytes": own_peak_bytes()}


def describe(model: Any, names: list[str]) -> dict[str, Any]:  # noqa: ANN401 - transformers' own
    """Say of a model what `planning.module_kinds.ModuleKinds` holds.

    Args:
        model: A model of transformers, its weights on the meta device.
        names: The names of a checkpoint's tensors.

    Returns:
        The members but the peak; sets as lists, as JSON has them.
    """
    model.tie_weights()
    head = model.get_output_embeddings()
    shared: dict[int, list[str]] = {}
    for parameter_name, parameter in model.named_parameters(remove_duplicate=False):
        shared.setdefault(id(parameter), []).append(parameter_name)
    kinds = {
        name: _kind(module)
        for name, module in model.named_modules()
        if getattr(module._parameters.get("weight"), "ndim", 0) > 1  # noqa: SLF001
    }
    renamed, merged = _follow_names(model, names)
    return {
        "kinds": kinds,
        "tied": [names for names in shared.values() if len(names) > 1],
        "head": next((n for n, m in model.named_modules() if head is not None and m is head), None),
        "prefix": model.base_model_prefix,
        "renamed": renamed,
        "merged": merged,
        "named_weights": _named_weights(
            model, [n for n, kind in kinds.items() if kind == "Linear"]
        ),
    }


def _follow_names(model: Any, names: list[str]) -> tuple[dict[str, str], list[str]]:  # noqa: ANN401
    """Say what from_pretrained calls tensors, and which of them it turns into others."""
    from transformers.conversion_mapping import get_model_conversion_mapping  # noqa: PLC0415
    from transformers.core_model_loading import (  # noqa: PLC0415
        WeightConverter,
        rename_source_key,
    )

    conversions = get_model_conversion_mapping(model)
    converters = [c for c in conversions if isinstance(c, WeightConverter)]
    renamings = [c for c in conversions if not isinstance(c, WeightConverter)]
    known = model.state_dict()
    renamed, merged = {}, []
    for name in names:
        own, pattern = rename_source_key(
            name, renamings, converters, model.base_model_prefix, known
        )
        if own not in known or own == name:
            continue
        if pattern is not None:
            converter = next(c for c in converters if pattern in c.source_patterns)
            # Only of these does it expect that they were quantized wherever anything was.
            if not all(source.endswith(".weight") for source in converter.source_patterns):
                continue
            merged.append(name)
        renamed[name] = own
    return renamed, merged


def _named_weights(model: Any, linears: list[str]) -> list[str]:  # noqa: ANN401
    """Find the Linears without whose ``weight`` the model's own initialization fails.

    from_pretrained runs it after all values are loaded, and a packed Linear has no ``weight``.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._is_hf_initialized = True  # noqa: SLF001 - as loading marks it, so nothing is drawn
    return [name for name in linears if _is_named(model, name)]


def _is_named(model: Any, linear: str) -> bool:  # noqa: ANN401
    chain = [model]
    for part in linear.split("."):
        chain.append(getattr(chain[-1], part))
    weight = chain[-1]._parameters.pop("weight")  # noqa: SLF001
    owner = model
    try:
        for module in chain:
            owner = module if hasattr(module, "_init_weights") else owner
            owner._init_weights(module)  # noqa: SLF001
    except AttributeError as error:
        return "'weight'" in str(error)
    finally:
        chain[-1]._parameters["weight"] = weight  # noqa: SLF001
    return False


def _kind(module: object) -> str:
    # A subclass of Linear is one for every loader; what else it does, it does to the same weight.
    ancestors = [ancestor.__name__ for ancestor in type(module).__mro__]
    return next((name for name in ("Linear", "Embedding") if name in ancestors), ancestors[0])


def _limit(kind: int, value: int) -> None:
    _, most = resource.getrlimit(kind)
    # Whoever started this may have less to give.
    value = value if most == resource.RLIM_INFINITY else min(value, most)
    resource.setrlimit(kind, (value, value))


def main() -> None:
    """Read a config from standard input and write what its model says to standard output."""
    end_with_parent(os.getppid())
    _limit(resource.RLIMIT_CPU, _SECONDS)
    # Data, not address space: CUDA builds of torch map gigabytes of code that take no memory.
    _limit(resource.RLIMIT_DATA, _MEMORY_BYTES)
    # Whatever a library prints must not mix with the answer.
    with contextlib.redirect_stdout(sys.stderr):
        answer = _describe(**json.load(sys.stdin))
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
