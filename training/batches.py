"""Which rows every optimizer step takes, and how they are split to fit into memory."""

from collections.abc import Iterator

import numpy as np


class RowOrder:
    """The rows of every optimizer step: all of them once in every epoch, each time shuffled anew.

    The last step of an epoch has fewer rows where they do not come out even. What a step takes
    depends on its number alone, so training goes on after a kill where it was.

    Args:
        rows: How many there are.
        batch_size: How many a step takes.
        seed: Of the order.

    Attributes:
        steps_per_epoch: How many steps see all rows.
    """

    steps_per_epoch: int

    def __init__(self, rows: int, batch_size: int, seed: int) -> None:
        self.steps_per_epoch = -(-rows // batch_size)
        self._rows = rows
        self._batch_size = batch_size
        self._seed = seed
        self._epoch: tuple[int, np.ndarray] | None = None

    def rows_of(self, step: int) -> np.ndarray:
        """Give the numbers of the rows that a step takes.

        Args:
            step: Its number, from 0.

        Returns:
            int64 [batch_size], or fewer at the end of an epoch.
        """
        epoch, index = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            generator = np.random.default_rng([self._seed, epoch])
            self._epoch = (epoch, generator.permutation(self._rows))
        start = index * self._batch_size
        return self._epoch[1][start : start + self._batch_size]


def micro_batches(
    numbers: np.ndarray, tokens: np.ndarray, micro_batch_size: int
) -> Iterator[np.ndarray]:
    """Split the rows of a step.

    Args:
        numbers: The rows.
        tokens: How long each of all rows is.
        micro_batch_size: How many are in memory at one time.

    Yields:
        Their numbers, rows of about one length together so that little is padding, the longest
        first: what does not fit into memory shows at once. The step's gradient is their sum, so it
        is the same in any order but for rounding.
    """
    by_length = numbers[np.argsort(-tokens[numbers], kind="stable")]
    for start in range(0, len(by_length), micro_batch_size):
        yield by_length[start : start + micro_batch_size]
