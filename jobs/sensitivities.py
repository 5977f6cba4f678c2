"""What rounding and shrinking would lose of a model, measured once and kept beside it.

Nothing in here is about one recipe: every recipe that `planning.palette` knows is judged by it.
"""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0)]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Rounding(_Value):
    """What rounding one weight would lose."""

    relative_rmse: Amount = Field(
        description="Root mean square of the difference over that of what is kept of the weight."
    )
    energy: Amount = Field(description="Sum of squares of what is kept of it.")


class Variant(_Value):
    """One way to round, of the model as it is or of what a shrink step leaves."""

    width: float | None = Field(description="Of the shrink step; None where nothing is left out.")
    group_size: int | None = Field(description="Inputs that share a scale; None is a channel.")
    weights: dict[str, Rounding] = Field(
        min_length=1,
        description="By name, every weight that it can round.",
    )


class Sensitivities(_Value):
    """Everything that was measured of a model, for recipes to be judged by."""

    engine_version: int = Field(description="Of the engine that measured; another may differ.")
    variants: tuple[Variant, ...] = Field(min_length=1)
    seconds: Amount = Field(description="How long it took.")
    predicted_peak_bytes: Bytes
    measured_peak_bytes: Bytes = Field(description="Resident memory that it took, at its peak.")

    def find(self, width: float | None, group_size: int | None) -> Variant | None:
        """Give what was measured of one way to round; None where the model does not allow it."""
        known = {(variant.width, variant.group_size): variant for variant in self.variants}
        return known.get((width, group_size))

    @property
    def whole(self) -> Variant:
        """The model as it is, rounded with one scale for every output channel."""
        return self.variants[0]
