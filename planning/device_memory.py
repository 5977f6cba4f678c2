"""What rounding takes of a CUDA device's memory, whatever the size of the model."""

from planning.working_set import WorkingSet

#: A weight as it came, as a float, in steps, rounded, and its error in double precision.
_BYTES_PER_WEIGHT = 48
#: torch takes memory from the device in pieces of 20 MB, and of 2 MB for what is small; every
#: thread has a stream, and every stream pieces of its own.
_PIECES_BYTES = 26 * 1024**2


def device_bytes(buffers: WorkingSet) -> int:
    """Tell the most that torch will have reserved on the device.

    Args:
        buffers: The threads and chunks of a job.

    Returns:
        Bytes, without the driver's own context; 0 where nothing is rounded, because pruning stays
        with the processor.
    """
    rounded = buffers.per_thread.get("rounded", 0)
    if not rounded:
        return 0
    return buffers.threads * (_PIECES_BYTES + rounded * _BYTES_PER_WEIGHT)
