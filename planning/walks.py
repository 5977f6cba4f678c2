"""Running a model block by block: when `evaluate` does that, and what it holds then.

Every figure is an estimate from headers and the config, as only the model's own code knows more.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.checkpoint import Checkpoint
from jobs.recipe import Calibrate, Evaluate, Recipe
from jobs.safetensors_header import DTYPE_BYTES, TensorSpec
from planning.blocks import block_of

#: torch and transformers, once imported: seen 440 to 500 MB, and none below the first.
LEAST_LIBRARY_BYTES = 400_000_000
LIBRARY_BYTES = 470_000_000
#: What they may take beside what they do as a rule: 520 MB seen, in training.
MORE_LIBRARY_BYTES = 60_000_000
#: The same once a model has run block by block: seen 480 MB (BERT) to 550 MB (a Llama in bfloat16).
_WALKING_BYTES = 500_000_000
_MOST_WALKING_BYTES = 560_000_000
#: Loading holds some weights twice, and outputs and activations come on top.
SHARE_ON_TOP = 0.15
#: Where there is no budget, the activations of rows that go through the model together.
_GOOD_ROOM_BYTES = 1024**3
#: Outputs of the original that are kept, of 8 places in a row where each has a distribution.
_MOST_KEPT_BYTES = 64 * 1024**2
_PLACES = 8
_FLOAT_BYTES = 4
#: What a config calls the width of what blocks hand on, and that inside of them.
WIDTH_KEYS = ("hidden_size", "d_model", "n_embd", "dim")
_INNER_KEYS = ("intermediate_size", "d_ff", "n_inner", "encoder_ffn_dim", "ffn_dim", "hidden_dim")
_INNER_TIMES = 4
#: What of a block's inner width is held at a time, and of what blocks hand on between them.
_INNER_HELD = 3
_HANDED_HELD = 2
#: What a block's backward pass needs of its forward: so many of what is as wide as what blocks hand
#: on, and as wide as its inside; and of the logits.
_WIDTHS_LEFT = 12
_INNERS_LEFT = 5
_LOGITS_LEFT = 4
#: In names of classes whose outputs are as wide as their vocabulary.
_WIDE = ("LM", "ConditionalGeneration")
_ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}


def is_walked(checkpoint: Checkpoint, recipe: Recipe) -> bool:
    """Say whether a model and its artifact are run block by block.

    Args:
        checkpoint: The model.
        recipe: What is to be done.

    Returns:
        Whether the recipe evaluates, and all of the model would pass its budget; or whether only
        load.py opens the artifact, which transformers then does not.
    """
    compression = recipe.compression
    if recipe.evaluate is None or compression is None:
        return False
    if compression.rounding is not None and recipe.output.format == "safetensors":
        return True
    budget = recipe.budget.host_memory
    return budget is not None and budget < whole_bytes(checkpoint)


def whole_bytes(checkpoint: Checkpoint) -> int:
    """Give about what a process holds at its peak that runs a model as a whole."""
    return LIBRARY_BYTES + round((1 + SHARE_ON_TOP) * weight_bytes(checkpoint))


def weight_bytes(checkpoint: Checkpoint) -> int:
    """Give what all weights take where they are run; an artifact's are floats again."""
    return sum(_held_bytes(checkpoint, tensor) for tensor in checkpoint.tensors.values())


def largest_block_bytes(checkpoint: Checkpoint) -> int:
    """Give what the weights of the largest block take; 0 where no names tell blocks."""
    sizes: Counter[str] = Counter()
    for tensor in checkpoint.tensors.values():
        sizes[block_of(tensor.name) or ""] += _held_bytes(checkpoint, tensor)
    sizes.pop("", None)
    return max(sizes.values(), default=0)


def width_of(config: Mapping[str, Any]) -> int:
    """Give how wide what blocks hand on is, of one token; 0 where the config does not say."""
    return _member(config, WIDTH_KEYS)


@dataclass(frozen=True)
class Walk:
    """What running a model block by block holds beside the libraries.

    Attributes:
        block_bytes: The largest block.
        mapped_bytes: The largest embedding or head, which is mapped while no block is in memory.
        made_bytes: Embeddings and heads that are made of int8, and stay in memory.
        is_wide: Whether an output is as wide as the vocabulary, and so needs the head.
        forward_bytes: What one batch takes on its way through a block or the head.
        kept_bytes: Outputs that are kept to be compared.
        rows_bytes: What all rows take between two blocks.
    """

    block_bytes: int
    mapped_bytes: int
    made_bytes: int
    is_wide: bool
    forward_bytes: int
    kept_bytes: int
    rows_bytes: int

    @property
    def least_bytes(self) -> int:
        """What a process holds at least."""
        head = self.mapped_bytes if self.is_wide else 0
        return LEAST_LIBRARY_BYTES + max(self.block_bytes, head)

    @property
    def sufficient_bytes(self) -> int:
        """About the smallest budget: rows go on between blocks one by one."""
        return _MOST_WALKING_BYTES + self._fixed_bytes

    def room_bytes(self, budget: int | None) -> int:
        """Give how much of a budget is left for the activations of rows that go together."""
        if budget is None:
            return _GOOD_ROOM_BYTES
        return max(0, budget - _MOST_WALKING_BYTES - self._fixed_bytes)

    def peak_bytes(self, budget: int | None) -> int:
        """Give about what a process holds at its peak."""
        handed = min(self.rows_bytes, self.room_bytes(budget))
        return _WALKING_BYTES + self._fixed_bytes + handed

    @property
    def _fixed_bytes(self) -> int:
        block = round((1 + SHARE_ON_TOP) * self.block_bytes)
        held = max(block + self.made_bytes, self.mapped_bytes)
        return held + self.forward_bytes + self.kept_bytes


def walk_of(checkpoint: Checkpoint, recipe: Recipe, wanted: Evaluate) -> Walk:
    """Say what running a model block by block holds.

    Args:
        checkpoint: The model; its artifact is no larger.
        recipe: What is to be done.
        wanted: How it is run.

    Returns:
        The same for the model and its artifact.
    """
    config = checkpoint.config or {}
    item = _item_bytes(checkpoint)
    width, inner, logits = width_of(config), _inner_of(config), _logits_of(config)
    outside = [
        _held_bytes(checkpoint, tensor)
        for tensor in checkpoint.tensors.values()
        if block_of(tensor.name) is None
    ]
    rounding = recipe.compression.rounding if recipe.compression else None
    is_made = rounding is not None and bool(rounding.embeddings or rounding.include)
    tokens = wanted.max_length
    row_bytes = tokens * (_HANDED_HELD * width * item + tokens)
    return Walk(
        block_bytes=largest_block_bytes(checkpoint),
        mapped_bytes=max(outside, default=0),
        made_bytes=sum(outside) if is_made else 0,
        is_wide=logits > 0,
        # Losses are those of one row at a time, as floats and their logarithms.
        forward_bytes=wanted.batch_size * tokens * max(_INNER_HELD * inner, logits) * item
        + 2 * tokens * logits * _FLOAT_BYTES,
        kept_bytes=min(_MOST_KEPT_BYTES, wanted.rows * _PLACES * logits * _FLOAT_BYTES),
        rows_bytes=wanted.rows * row_bytes,
    )


def backward_bytes(checkpoint: Checkpoint, wanted: Calibrate) -> int:
    """Give about what a batch leaves in all blocks on its way to a gradient."""
    config = checkpoint.config or {}
    width, inner = width_of(config), _inner_of(config)
    blocks = {block_of(name) for name in checkpoint.tensors} - {None}
    tokens = wanted.batch_size * wanted.max_length
    inside = (_WIDTHS_LEFT * width + _INNERS_LEFT * inner) * _item_bytes(checkpoint)
    return tokens * (len(blocks) * inside + _LOGITS_LEFT * _logits_of(config) * _FLOAT_BYTES)


def _inner_of(config: Mapping[str, Any]) -> int:
    return _member(config, _INNER_KEYS) or _INNER_TIMES * width_of(config)


def _logits_of(config: Mapping[str, Any]) -> int:
    """Give how wide an output is that is as wide as the vocabulary; 0 where none is."""
    is_wide = any(part in str(config.get("architectures")) for part in _WIDE)
    return _member(config, ("vocab_size",)) if is_wide else 0


def _held_bytes(checkpoint: Checkpoint, tensor: TensorSpec) -> int:
    is_float = tensor.dtype in ("F64", "F32", "BF16", "F16")
    named = _ITEM_BYTES.get(_dtype_name(checkpoint)) if is_float else None
    return tensor.elements * (named or DTYPE_BYTES[tensor.dtype])


def _item_bytes(checkpoint: Checkpoint) -> int:
    largest = max(checkpoint.tensors.values(), key=lambda tensor: tensor.elements)
    return _ITEM_BYTES.get(_dtype_name(checkpoint)) or DTYPE_BYTES[largest.dtype]


def _dtype_name(checkpoint: Checkpoint) -> str:
    """Give the dtype in which the config has a model run, as the library names it."""
    config = checkpoint.config or {}
    return str(config.get("dtype", config.get("torch_dtype")))


def _member(config: Mapping[str, Any], keys: tuple[str, ...]) -> int:
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    found = (part.get(key) for part in parts for key in keys)
    return next((value for value in found if isinstance(value, int) and value > 0), 0)
