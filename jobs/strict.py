"""What every part of a recipe is: checked when it is read, and unchanged from then on."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

#: An fnmatch pattern on module names.
Pattern = Annotated[str, Field(min_length=1, max_length=256)]
#: The id of an uploaded data set.
DatasetId = Annotated[str, Field(pattern=r"^ds_[0-9a-f]{64}$")]


class Strict(BaseModel):
    """A part of a recipe: unknown keys are refused, and nothing changes once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
