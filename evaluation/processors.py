"""What a folder brings along to make inputs of texts and images: its tokenizer, its processor."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jobs.problems import Problem

Encoder = Callable[[list[str]], dict[str, torch.Tensor]]
#: Makes the model's main input of one image of PIL, [1, …].
Processor = Callable[[Any], torch.Tensor]


def image_processor(folder: Path) -> Processor:
    """Open a folder's image processor.

    Args:
        folder: The original.

    Returns:
        What makes an input of an image.

    Raises:
        Problem: `evaluation_failed`: there is none that opens.
    """
    from transformers import AutoImageProcessor  # noqa: PLC0415 - only images need it

    try:
        processor: Any = AutoImageProcessor.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, backend="pil"
        )
    except Exception as error:
        raise Problem(
            "evaluation_failed",
            "The data set holds images, and the model's folder no preprocessor_config.json that "
            f"opens: {' '.join(str(error).split())[:300]}",
        ) from error

    def process(image: Any) -> torch.Tensor:  # noqa: ANN401 - PIL's
        values: torch.Tensor = processor(images=[image], return_tensors="pt")["pixel_values"]
        return values

    return process


def text_encoder(folder: Path, longest: int) -> Encoder:
    """Open a folder's tokenizer.

    Args:
        folder: The original.
        longest: Tokens that a row may have.

    Returns:
        What makes inputs of texts, padded to the longest of them.

    Raises:
        Problem: `evaluation_failed`: there is none, or it names files elsewhere.
    """
    tokenizer = _open_tokenizer(folder)
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    if tokenizer.pad_token is None:
        raise Problem("evaluation_failed", "The folder's tokenizer has no token to pad with.")

    def encode(texts: list[str]) -> dict[str, torch.Tensor]:
        return dict(
            tokenizer(
                texts,
                padding=True,
                truncation=True,
                max_length=min(longest, tokenizer.model_max_length),
                return_tensors="pt",
                return_attention_mask=True,
            )
        )

    return encode


def special_tokens(folder: Path) -> tuple[int, tuple[int, ...]]:
    """Give the tokens of a folder's tokenizer that mean no text.

    Args:
        folder: The original.

    Returns:
        The token that hides another one, and all special ones.

    Raises:
        Problem: `evaluation_failed`: there is no tokenizer, or it hides nothing.
    """
    tokenizer = _open_tokenizer(folder)
    if tokenizer.mask_token_id is None:
        raise Problem("evaluation_failed", "The folder's tokenizer has no token that masks one.")
    return tokenizer.mask_token_id, tuple(tokenizer.all_special_ids)


def _open_tokenizer(folder: Path) -> Any:  # noqa: ANN401 - transformers has no types
    _refuse_paths(folder)
    from transformers import AutoTokenizer  # noqa: PLC0415 - only text needs it

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise Problem(
            "evaluation_failed",
            "Text is to be read, and the model's folder has no tokenizer that opens: "
            f"{' '.join(str(error).split())[:300]}",
        ) from error


def _refuse_paths(folder: Path) -> None:
    """Refuse a tokenizer's config that names files, which could lie anywhere."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        members = json.loads(path.read_bytes()) if path.exists() else {}
        for key, value in members.items():
            is_file = key in ("vocab", "merges") or key.endswith("_file")
            if is_file and isinstance(value, str):
                raise Problem("evaluation_failed", f"{name} names a file: {key}. Leave it out.")
