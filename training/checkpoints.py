"""How far a training is, on disk, so that after a kill the next attempt goes on from there.

Nothing is forced to the disk: what a killed process wrote is in the kernel's page cache. So a
checkpoint counts only on the boot that wrote it. Of two files, one is always whole.
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from training.tensor_files import read_tensors, write_tensors

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_NAME = "training.json"
_BEST = "best.safetensors"
#: A checkpoint has all of them, and so has memory.
_MOST_LOSSES = 4096


@dataclass
class Record:
    """How far a training is.

    Attributes:
        job: Tells it from others.
        steps_done: Optimizer steps.
        micro_batch_size: Rows at a time.
        savings: What is turned on.
        decisions: What was tried before, as JSON.
        losses: Of steps that are evenly spread, and of the last one: its number, its loss, its
            learning rate and the resident memory after it.
        looks: Steps and losses on held-out rows.
        rows_seen: All rows together.
        tokens_seen: All tokens together.
        seconds: Spent in steps.
        best: The step of the lowest look, whose weights lie in a file of their own.
    """

    job: str
    steps_done: int = 0
    micro_batch_size: int = 1
    savings: list[str] = field(default_factory=list)
    decisions: list[dict[str, Any]] = field(default_factory=list)
    losses: list[tuple[int, float, float, int]] = field(default_factory=list)
    looks: list[tuple[int, float]] = field(default_factory=list)
    rows_seen: int = 0
    tokens_seen: int = 0
    seconds: float = 0.0
    best: int | None = None

    def add_loss(self, loss: float, learning_rate: float, resident_bytes: int) -> None:
        """Put down the loss of the last step; of millions of steps, no more than a few thousand.

        Which ones are kept depends on their numbers alone, so it is the same after a kill.
        """
        apart = 1 << ((self.steps_done - 1) // _MOST_LOSSES).bit_length()
        if self.losses and (self.losses[-1][0] - 1) % apart:
            # It was there as the last one.
            self.losses.pop()
        if len(self.losses) >= _MOST_LOSSES - 1:
            self.losses = [kept for kept in self.losses if (kept[0] - 1) % apart == 0]
        self.losses.append((self.steps_done, loss, learning_rate, resident_bytes))


class Checkpoints:
    """The checkpoints of one training.

    Args:
        folder: Where they lie.
        job: Tells the training from others: what another one left counts for nothing.

    Attributes:
        job: That.
    """

    job: str

    def __init__(self, folder: Path, job: str) -> None:
        self._folder = folder
        self.job = job
        self._boot = _BOOT_ID.read_text().strip()
        self._file: str | None = None
        self._is_full = False

    def find(self) -> Record | None:
        """Give how far attempts before this one had come; None where it has to begin.

        What they left half written is removed.
        """
        record = self._found()
        if record is None:
            self.remove()
            return None
        self._remove_all_but((_NAME, str(self._file), _BEST))
        return record

    def _found(self) -> Record | None:
        try:
            found = json.loads((self._folder / _NAME).read_bytes())
        except (OSError, ValueError):
            return None
        is_own = found.get("boot") == self._boot and found["record"]["job"] == self.job
        if not is_own or not (self._folder / found["file"]).exists():
            return None
        self._file = found["file"]
        record = Record(**found["record"])
        record.losses = [(step, loss, rate, n) for step, loss, rate, n in record.losses]
        record.looks = [(step, loss) for step, loss in record.looks]
        return record

    def read(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Read what was found into the tensors that are there."""
        if self._file is not None:
            read_tensors(self._folder / self._file, tensors)

    def write(self, record: Record, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write how far it is; what was there stays until this is whole.

        A disk without room ends the checkpoints, not the training.
        """
        if self._is_full:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"training-{record.steps_done}.safetensors"
        about = {"boot": self._boot, "file": name, "record": asdict(record)}
        partial = self._folder / f"{_NAME}.part"
        try:
            write_tensors(self._folder / name, tensors)
            partial.write_text(json.dumps(about))
        except OSError:
            self._is_full = True
            (self._folder / name).unlink(missing_ok=True)
            partial.unlink(missing_ok=True)
            return
        partial.replace(self._folder / _NAME)
        if self._file not in (None, name):
            (self._folder / str(self._file)).unlink(missing_ok=True)
        self._file = name

    def write_best(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Keep the weights of the best look."""
        self._folder.mkdir(parents=True, exist_ok=True)
        partial = self._folder / f"{_BEST}.part"
        write_tensors(partial, tensors)
        partial.replace(self._folder / _BEST)

    def read_best(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Read those weights back."""
        read_tensors(self._folder / _BEST, tensors)

    def remove(self) -> None:
        """Remove them all: what they were for is done."""
        self._remove_all_but(())
        if self._folder.exists():
            self._folder.rmdir()

    def _remove_all_but(self, kept: Collection[str]) -> None:
        for path in self._folder.glob("*"):
            if path.name not in kept:
                path.unlink()
