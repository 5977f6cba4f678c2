"""What it takes to run a model: an estimate, as only its own code knows its activations."""

from jobs.checkpoint import Checkpoint

#: torch and transformers, once imported: seen 440 to 500 MB, and none below the first.
_LEAST_LIBRARY_BYTES = 400_000_000
_LIBRARY_BYTES = 470_000_000
#: Loading holds some weights twice, and outputs and activations come on top.
_SHARE_ON_TOP = 0.15


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
