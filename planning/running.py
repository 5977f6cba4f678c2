"""Whether a model can be run, and what it takes: an estimate, as only its own code knows more."""

from jobs.checkpoint import Checkpoint
from jobs.problems import Detail, Problem
from jobs.recipe import Recipe

#: torch and transformers, once imported: seen 440 to 500 MB, and none below the first.
_LEAST_LIBRARY_BYTES = 400_000_000
_LIBRARY_BYTES = 470_000_000
#: Loading holds some weights twice, and outputs and activations come on top.
_SHARE_ON_TOP = 0.15


def refuse_unrunnable(recipe: Recipe, pointer: str, *, has_config: bool) -> None:
    """Refuse to evaluate what transformers does not open.

    Args:
        recipe: What is to be done.
        pointer: Where the recipe stands in the request.
        has_config: Whether the model is a transformers folder.

    Raises:
        Problem: `evaluation_unsupported`.
    """
    if recipe.evaluate is None:
        return
    if not has_config:
        raise _unsupported(
            f"{pointer}/evaluate",
            "evaluate runs transformers folders, and the model has no config.json. Upload the "
            "folder with it, or leave evaluate out.",
        )
    if recipe.output.format == "safetensors" and recipe.steps[-1].op == "quantize":
        raise _unsupported(
            f"{pointer}/output/format",
            "transformers does not open int8 in plain safetensors, so the artifact cannot be run. "
            "Leave output.format or evaluate out.",
        )


def least_running_bytes(checkpoint: Checkpoint) -> int:
    """Give what a process that runs a model holds at least: the libraries, and every weight.

    Args:
        checkpoint: The model; its artifact is float again when it is run.

    Returns:
        Bytes of resident memory.
    """
    return _LEAST_LIBRARY_BYTES + _weight_bytes(checkpoint)


def running_bytes(checkpoint: Checkpoint) -> int:
    """Give about what a process that runs a model holds at its peak.

    Args:
        checkpoint: The model.

    Returns:
        Bytes of resident memory.
    """
    return _LIBRARY_BYTES + round((1 + _SHARE_ON_TOP) * _weight_bytes(checkpoint))


def _weight_bytes(checkpoint: Checkpoint) -> int:
    return sum(tensor.nbytes for tensor in checkpoint.tensors.values())


def _unsupported(pointer: str, detail: str) -> Problem:
    code = "evaluation_unsupported"
    return Problem(code, detail, errors=[Detail(pointer, code, detail)])
