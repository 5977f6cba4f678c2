"""What a client wants of an artifact, rather than how it is made."""

from pydantic import ByteSize, Field, model_validator

from jobs.strict import Strict


class Goal(Strict):
    """A size, and perhaps limits on what may be lost and on memory, for recipes to be found."""

    target_bytes: ByteSize | None = Field(
        None, gt=0, description="Size of the artifact's files at most, such as `500MiB`."
    )
    max_size_ratio: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Artifact bytes over model bytes at most, tensor files alone; give it or "
        "`target_bytes`, or both.",
    )
    host_memory: ByteSize | None = Field(
        None, gt=0, description="Memory that the job itself may take: its `budget.host_memory`."
    )
    max_loss: float | None = Field(
        None, gt=0, description="Predicted `loss` of a suggested recipe, at most."
    )
    max_relative_rmse: float | None = Field(
        None,
        gt=0,
        description="A weight that rounding would change by more than this, as relative RMSE, "
        "stays float.",
    )
    min_cosine: float | None = Field(
        None,
        ge=-1,
        le=1,
        description="Mean cosine of the model's outputs with the original's, at least. It cannot "
        "be predicted: the recipes evaluate, and have a gate for it.",
    )

    @model_validator(mode="after")
    def _sized(self) -> "Goal":
        if self.target_bytes is None and self.max_size_ratio is None:
            raise ValueError("say how small: target_bytes, for example 500MiB, or max_size_ratio")
        return self
