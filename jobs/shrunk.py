"""What a shrink step left out of a model, as its report tells it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Kept(_Value):
    """Of which heads, channels or layers some were left out."""

    name: str = Field(
        description="Their module, as the model that came in calls it; with `*` in place of a "
        "layer's number where all layers keep the same ones."
    )
    unit: Literal["heads", "channels", "layers"]
    count: Count = Field(description="How many there were; heads that share keys count as one.")
    kept: str = Field(
        pattern=r"^\d+(-\d+)?(,\d+(-\d+)?)*$",
        description="Which were kept, counted from 0, such as `0-5,7`.",
    )


class Shrunk(_Value):
    """What a shrink step left out."""

    kept: tuple[Kept, ...]
    config: dict[str, Any] = Field(
        description="The members of config.json that changed, as they are now."
    )
    parameters: Count = Field(description="Weights that are left.")
