"""Opens transformers folders with the library's own classes, and nothing that they bring along."""

import json
import os
from pathlib import Path
from typing import Any

import torch
import transformers

from evaluation.faults import blamed_on
from jobs.problems import Problem

#: What a config could name to have code fetched or run.
_UNTRUSTED_KEYS = ("auto_map", "attn_implementation", "_attn_implementation")
_CONFIG_NAME = "config.json"


def open_model(folder: Path) -> Any:  # noqa: ANN401 - transformers has no types
    """Open a model to be run.

    Args:
        folder: A transformers folder: the original, or an artifact in compressed-tensors.

    Returns:
        A ``PreTrainedModel`` in evaluation mode, of the class that its config names, with every
        weight from the folder.

    Raises:
        Problem: `unknown_architecture`: the installed transformers has no such class;
            `evaluation_failed`: it does not open, or a weight is missing.
    """
    os.environ["HF_HUB_OFFLINE"] = "1"
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model_class, members = trusted_config(folder)
    with blamed_on("evaluation_failed", f"{model_class.__name__} does not open the folder"):
        config = model_class.config_class.from_dict(members)
        model, loaded = model_class.from_pretrained(
            folder,
            config=config,
            dtype="auto",
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    missing = sorted(loaded["missing_keys"])
    if missing:
        raise Problem(
            "evaluation_failed",
            f"The folder lacks {len(missing)} weights of a {model_class.__name__}, such as "
            f"{missing[0]!r}; run with random ones, it would tell nothing.",
        )
    return model.eval()


def trusted_config(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Read a folder's config, and leave out what names code.

    Args:
        folder: A transformers folder.

    Returns:
        The library's own class that it names, and its members.

    Raises:
        Problem: `unknown_architecture`: the installed transformers has no such class.
    """
    members = json.loads((folder / _CONFIG_NAME).read_bytes())
    return _class_of(members), _trusted(members)


def _class_of(config: dict[str, Any]) -> Any:  # noqa: ANN401
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    found: Any = getattr(transformers, name, None) if isinstance(name, str) else None
    is_model = isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)
    if not is_model or found.config_class is None:
        raise Problem(
            "unknown_architecture",
            f"{_CONFIG_NAME} names the architecture {str(name)[:100]!a}, which transformers "
            f"{transformers.__version__} does not have; evaluate runs its own classes only.",
        )
    if found.config_class.model_type != config.get("model_type"):
        raise Problem(
            "unknown_architecture",
            f"{_CONFIG_NAME} names {name} and the model_type {config.get('model_type')!a}, which "
            "are not of one model.",
        )
    return found


def resident_parameter_bytes(model: torch.nn.Module) -> int:
    """Give the bytes of a model's weights and buffers as they are held now, each once."""
    tensors = {tensor.data_ptr(): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


def _trusted(members: Any) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Leave out what names code, also in the configs of a model's parts."""
    if isinstance(members, dict):
        return {key: _trusted(v) for key, v in members.items() if key not in _UNTRUSTED_KEYS}
    return members
