"""What becomes of tensors that lose heads, channels or layers, as values."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.checkpoint import Checkpoint
from jobs.report import Skipped
from jobs.safetensors_header import TensorSpec
from planning.stacks import Part, Unit


@dataclass(frozen=True)
class Group:
    """The heads or channels of one layer, or of all that keep the same ones.

    Attributes:
        name: The module that they belong to, as the model calls it; with ``*`` for its layer's
            number where all keep the same.
        unit: What they are.
        count: How many the model has; heads that share keys and values are one.
        kept: How many are kept.
    """

    name: str
    unit: Unit
    count: int
    kept: int


@dataclass(frozen=True)
class Cut:
    """How a tensor becomes smaller.

    Attributes:
        source: The tensor in the model.
        axis: Along which of its axes.
        group: Whose heads or channels lie along it.
        parts: Where they lie.
        block: The module in its own layer: what its weights say of a head is multiplied, and added
            to what those of other layers say where all keep the same.
    """

    source: TensorSpec
    axis: int
    group: Group
    parts: tuple[Part, ...]
    block: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of what is kept of it."""
        size = self.group.kept * sum(part.width for part in self.parts)
        shape = self.source.shape
        return (*shape[: self.axis], size, *shape[self.axis + 1 :])

    @property
    def is_scored(self) -> bool:
        """Whether its weights decide what is kept."""
        return any(part.is_scored for part in self.parts)


@dataclass(frozen=True)
class Shrinkage:
    """What a shrink step leaves of a model.

    Attributes:
        model: The model that came in.
        checkpoint: What is left of it, as if it lay in the same folder.
        sources: The model's tensor that each of its tensors is, or is cut from, by name.
        cuts: How the tensors that are cut become smaller, by their names in `checkpoint`.
        groups: Heads and channels of which some are left out, in the order of the layers.
        layers: By the name of a stack of which layers are left out, how many it has and which are
            kept.
        edits: The members of the config that change, and what they become.
        skipped: What the step could have made smaller and did not, with the reason.
    """

    model: Checkpoint
    checkpoint: Checkpoint
    sources: Mapping[str, TensorSpec]
    cuts: Mapping[str, Cut]
    groups: tuple[Group, ...]
    layers: Mapping[str, tuple[int, tuple[int, ...]]]
    edits: Mapping[str, Any]
    skipped: tuple[Skipped, ...]

    @property
    def scored_bytes(self) -> int:
        """How many bytes are read to find out what is kept."""
        return sum(cut.source.nbytes for cut in self.cuts.values() if cut.is_scored)

    @property
    def units(self) -> int:
        """How many heads and channels are chosen from, in all layers."""
        return sum(group.count for group in self.groups)
