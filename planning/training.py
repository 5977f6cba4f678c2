"""What training a model takes of memory: an estimate, as only trying it tells what a row takes."""

from fnmatch import fnmatchcase

from jobs.checkpoint import Checkpoint
from jobs.finetuning import FinetuneStep
from jobs.recipe import Recipe

_FLOAT_BYTES = 4
#: By optimizer: what its states take of each trained weight.
_STATE_BYTES = {"adamw": 8.0, "adamw8bit": 2.1, "adafactor": 0.1, "sgd": 4.0}
#: What a config calls the width of its layers, how many they are, and its vocabulary.
_WIDTH_KEYS = ("hidden_size", "d_model", "n_embd", "dim")
_DEPTH_KEYS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers")
#: How often a layer's width is held for each token until its gradients are known.
_WIDTHS_PER_LAYER = 34
#: Of each token's logits: themselves, in float32, their softmax, and their gradient.
_LOGITS = 4
_FLOATS = ("F64", "F32", "F16", "BF16")
#: A gradient is made beside the one that it is added to; of a tied weight, one at each place.
GRADIENTS_AT_ONCE = 2
MARGIN = 1.1
#: What is left of a budget for what no try of a row sees: libraries' own memory, files that are
#: read.
RESERVE_BYTES = 24 * 1024**2
RESERVE_SHARE = 0.02


def reserve_bytes(budget: int) -> int:
    """Give what of a training's budget is left free, in bytes."""
    return min(RESERVE_BYTES + int(RESERVE_SHARE * budget), budget // 4)


def training_budget(peak_bytes: int) -> int:
    """Give the smallest budget that leaves its reserve free beside a peak, in bytes."""
    return int((peak_bytes + RESERVE_BYTES) / (1 - RESERVE_SHARE)) + 1


def least_training_bytes(checkpoint: Checkpoint, step: FinetuneStep) -> int:
    """Give what training holds at least, the libraries apart.

    Args:
        checkpoint: The model.
        step: How it is trained.

    Returns:
        Bytes of its weights, their gradients and the optimizer's states, in the smallest form that
        the step allows; rows come on top, so less is certainly too little.
    """
    weights, trained = _weights(checkpoint, step)
    optimizer = step.optimizer
    if optimizer == "adamw" and "adamw8bit" in step.savings:
        optimizer = "adamw8bit"
    states = 2.0 if optimizer == "adamw8bit" else _states(step, optimizer)
    if step.method == "lora" or "lora" in step.savings:
        return sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    return round(_FLOAT_BYTES * (weights + trained) + states * trained)


def sufficient_training_bytes(checkpoint: Checkpoint, step: FinetuneStep) -> int:
    """Give about what training holds with one row at a time and all savings that it may have.

    Args:
        checkpoint: The model.
        step: How it is trained.

    Returns:
        Bytes, the libraries apart, and rather too many.
    """
    held, row = least_training_bytes(checkpoint, step), _row_bytes(checkpoint, step)
    if step.method == "lora" or "lora" in step.savings:
        return round(MARGIN * (held + row))
    trained = [t for t in checkpoint.tensors.values() if t.dtype in _FLOATS]
    trained = [t for t in trained if _is_trained(t.name, step)]
    largest = max((tensor.elements for tensor in trained), default=0)
    if step.optimizer == "adamw8bit" or "adamw8bit" in step.savings:
        # Embeddings, whose rows are tokens, keep moments of 32 bits.
        rows = (checkpoint.config or {}).get("vocab_size")
        wide = sum(tensor.elements for tensor in trained if tensor.shape[:1] == (rows,))
        held += round((_STATE_BYTES["adamw"] - _STATE_BYTES["adamw8bit"]) * wide)
    at_once = GRADIENTS_AT_ONCE + bool(step.quantize_aware)
    return round(MARGIN * (held + at_once * _FLOAT_BYTES * largest + row))


def training_bytes(
    checkpoint: Checkpoint, recipe: Recipe, step: FinetuneStep, library_bytes: int
) -> int:
    """Give about what training holds at its peak, the libraries apart.

    Args:
        checkpoint: The model.
        recipe: Has the budget.
        step: How it is trained.
        library_bytes: What the libraries take of the budget.

    Returns:
        Bytes where the whole effective batch is in memory at once, or as many rows as the step
        says; with `micro_batch_size: auto`, no more than the budget, which it fills.
    """
    weights, trained = _weights(checkpoint, step)
    fixed = _FLOAT_BYTES * (weights + trained) + _states(step, step.optimizer) * trained
    if step.quantize_aware:
        # Each weight is there once more, rounded, while it is multiplied with.
        fixed += _FLOAT_BYTES * max((t.elements for t in checkpoint.tensors.values()), default=0)
    rows = step.batch_size if step.micro_batch_size == "auto" else step.micro_batch_size
    whole = round(fixed + rows * step.max_length * _token_bytes(checkpoint))
    budget = recipe.budget.host_memory
    if budget is None or step.micro_batch_size != "auto":
        return whole
    return min(whole, max(budget - library_bytes, least_training_bytes(checkpoint, step)))


def trained_tensors(checkpoint: Checkpoint, step: FinetuneStep) -> int:
    """Give how many tensors a step trains."""
    tensors = checkpoint.tensors.values()
    return sum(t.dtype in _FLOATS and _is_trained(t.name, step) for t in tensors)


def _weights(checkpoint: Checkpoint, step: FinetuneStep) -> tuple[int, int]:
    """Give how many weights there are, and how many are trained."""
    floats = [tensor for tensor in checkpoint.tensors.values() if tensor.dtype in _FLOATS]
    trained = [tensor for tensor in floats if _is_trained(tensor.name, step)]
    return sum(t.elements for t in floats), sum(t.elements for t in trained)


def _is_trained(name: str, step: FinetuneStep) -> bool:
    module = name.rpartition(".")[0]
    wanted = step.include is None or any(fnmatchcase(module, p) for p in step.include)
    return wanted and not any(fnmatchcase(module, p) for p in step.exclude)


def _states(step: FinetuneStep, optimizer: str) -> float:
    return 0.0 if optimizer == "sgd" and not step.momentum else _STATE_BYTES[optimizer]


def _row_bytes(checkpoint: Checkpoint, step: FinetuneStep) -> int:
    """Give about what one row takes until its gradients are known, if it is as long as it may be.

    With activations computed again, those of one layer at a time.
    """
    places = (checkpoint.config or {}).get("max_position_embeddings")
    tokens = min(step.max_length, places) if isinstance(places, int) else step.max_length
    is_again = "activation_checkpointing" in step.savings
    return tokens * _token_bytes(checkpoint, is_again=is_again)


def _token_bytes(checkpoint: Checkpoint, *, is_again: bool = False) -> int:
    config = checkpoint.config or {}
    width = next((w for key in _WIDTH_KEYS if isinstance(w := config.get(key), int)), 0)
    depth = next((d for key in _DEPTH_KEYS if isinstance(d := config.get(key), int)), 0)
    vocabulary = config.get("vocab_size")
    classes = vocabulary if isinstance(vocabulary, int) else 0
    widths = depth + _WIDTHS_PER_LAYER if is_again else depth * _WIDTHS_PER_LAYER
    return _FLOAT_BYTES * (width * widths + classes * _LOGITS)
