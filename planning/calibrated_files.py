"""Where the weights that data decided about lie until the artifact is written.

smoothed/*.safetensors     the model, where smoothing moved factors; it says what it said before
chosen/*.safetensors       what weights became by wanda or gptq, from what is smoothed
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from jobs.safetensors_header import Header, TensorSpec, read_header

SMOOTHED = "smoothed"
CHOSEN = "chosen"


@dataclass(frozen=True)
class CalibratedFile:
    """One of the files.

    Attributes:
        path: Where it lies.
        kind: `SMOOTHED` or `CHOSEN`.
        header: Its checked header.
    """

    path: Path
    kind: str
    header: Header

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """What it holds, by the names of the checkpoint."""
        return self.header.tensors


def calibrated_files(folder: Path | None) -> Iterator[CalibratedFile]:
    """Give the files of a calibration.

    Args:
        folder: Where it wrote them; None where there was none.

    Yields:
        Each file, in the order of the blocks.

    Raises:
        Problem: `invalid_checkpoint`: a file is damaged.
    """
    for kind in (SMOOTHED, CHOSEN):
        for path in sorted((folder / kind).glob("*.safetensors")) if folder else ():
            yield CalibratedFile(path, kind, read_header(path))
