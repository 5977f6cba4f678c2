"""The most rows that fit into memory at one time, found by trying fewer of them."""

from collections.abc import Callable

from jobs.finetuning import FinetuneStep
from training.fitting import even_micro_batch, largest_micro_batch
from training.memory import MemoryGauge

#: What rows take grows with the micro-batches that follow, as what is kept of one does not quite
#: fit the next: by a quarter was seen on a processor.
_GROWTH = 1.3
#: Tries so many rows, and gives their peak in bytes; None where memory ran out.
Probe = Callable[[int], int | None]


def find_micro_batch(probe: Probe, step: FinetuneStep, gauge: MemoryGauge) -> int | None:
    """Find how many rows are to be in memory at one time.

    Args:
        probe: Tries rows.
        step: Says how many rows are wanted together, or that as many as fit are, and the rows of
            an effective batch, which are the most.
        gauge: Knows the limit, and what is held without any row.

    Returns:
        The rows; None where not one fits, or not as many as the step says.
    """
    wanted = step.micro_batch_size
    most = step.batch_size if wanted == "auto" else wanted
    held = gauge.held_bytes()
    one = probe(1)
    if one is None or one > gauge.limit_bytes:
        return None
    if most == 1:
        return 1
    # A second row takes at most what the first one did.
    limit = gauge.limit_bytes
    can_two_fit = 2 * one - gauge.held_bytes() <= limit
    two = probe(2) if can_two_fit else None
    if two is None:
        return 1 if wanted == "auto" else None
    if wanted != "auto":
        return wanted if _most_that_fit(probe, (1, one), (2, two), limit, most) >= wanted else None
    # The peak from which on rows would grow past the limit.
    limit = held + round((limit - held) / _GROWTH)
    return even_micro_batch(_most_that_fit(probe, (1, one), (2, two), limit, most), most)


def _most_that_fit(
    probe: Probe, smaller: tuple[int, int], larger: tuple[int, int], limit: int, most: int
) -> int:
    """Double the rows until they are nearly as many as fit, by what the last two tries took.

    One line through few rows would not do: more of them have larger tensors, which are kept and
    given back in other ways.
    """
    while True:
        rows, held = larger
        size = largest_micro_batch(smaller, larger, limit, most)
        # Where a quarter of the room should do for all, nothing needs to be known better.
        quarter = held + (limit - held) // 4
        is_plenty = largest_micro_batch(smaller, larger, quarter, most) == most
        if is_plenty or size < 2 * rows or 2 * rows >= most:
            return size
        peak = probe(2 * rows)
        if peak is None:
            return rows
        smaller, larger = larger, (2 * rows, peak)
