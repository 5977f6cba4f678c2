"""Where the weights that data decided about lie until the artifact is written.

smoothed/*.safetensors     the model, where smoothing moved factors; it says what it said before
chosen/*.safetensors       what weights became by wanda or gptq, from what is smoothed
importance/*.safetensors   what decides which heads and channels are kept: by the name of a weight,
                           the squared norm of each of its inputs over all tokens (activation); or
                           by the name of a group, the importance of each head or channel (taylor)
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.safetensors_header import Header, TensorSpec, read_header

SMOOTHED = "smoothed"
CHOSEN = "chosen"
IMPORTANCE = "importance"


@dataclass(frozen=True)
class CalibratedFile:
    """One of the files.

    Attributes:
        path: Where it lies.
        kind: `SMOOTHED`, `CHOSEN` or `IMPORTANCE`.
        header: Its checked header.
    """

    path: Path
    kind: str
    header: Header

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """What it holds, by the names of the checkpoint."""
        return self.header.tensors


def calibrated_files(
    folder: Path | None, kinds: tuple[str, ...] = (SMOOTHED, CHOSEN)
) -> Iterator[CalibratedFile]:
    """Give the files of a calibration.

    Args:
        folder: Where it wrote them; None where there was none.
        kinds: Which of them; by default all that hold weights.

    Yields:
        Each file, in the order of the blocks.

    Raises:
        Problem: `invalid_checkpoint`: a file is damaged.
    """
    for kind in kinds:
        for path in sorted((folder / kind).glob("*.safetensors")) if folder else ():
            yield CalibratedFile(path, kind, read_header(path))
