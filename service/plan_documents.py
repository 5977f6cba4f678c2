"""What a plan is asked with and answered with, as the contract publishes it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from jobs.goal import Goal
from jobs.recipe import Recipe
from jobs.report import Loader


class PlanRequest(BaseModel):
    """A recipe, or a goal to find recipes for, and a model or no more than the headers of one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | None = Field(None, description="Id of an uploaded model.")
    headers: dict[str, dict[str, Any]] | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="By the name of each safetensors file, the JSON header that it begins with.",
    )
    config: dict[str, Any] | None = Field(None, description="Its config.json; with headers only.")
    files: dict[str, int] = Field(
        {},
        max_length=4096,
        description="Sizes of the other files, by name, for those that are copied into the "
        "artifact; with headers only.",
    )
    recipe: Recipe | None = Field(None, alias="spec", description="A recipe to plan; or give goal.")
    goal: Goal | None = Field(
        None,
        description="What the artifact shall be, of an uploaded model that was measured once, by a "
        "job whose recipe is the step `measure`; or give spec.",
    )

    @model_validator(mode="after")
    def _one_question(self) -> "PlanRequest":
        if (self.recipe is None) == (self.goal is None):
            raise ValueError("give either spec, a recipe to plan, or goal, to find recipes for")
        if self.goal is not None and self.model is None:
            raise ValueError("a goal needs model, the id of an uploaded one: headers tell no error")
        return self

    @model_validator(mode="after")
    def _one_model(self) -> "PlanRequest":
        if (self.model is None) == (self.headers is None):
            raise ValueError("give either model, the id of an uploaded one, or headers")
        if self.headers is None and (self.config is not None or self.files):
            raise ValueError("config and files belong to headers; an uploaded model has its own")
        return self


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True)


class PlannedStep(_Answer):
    """What one step will cost."""

    op: Literal["shrink", "prune", "finetune", "quantize", "infer"]
    method: str = Field(
        description="`magnitude`, `random`, the scheme of a quantize step, or the output of an "
        "infer step."
    )
    tensors_changed: int
    bytes_read: int = Field(
        description="For this step alone. The pass that writes the artifact counts for the last."
    )
    bytes_written: int
    host_peak_bytes: int
    rows: int | None = Field(
        None,
        description="How many rows an infer step answers. Null where only reading the data set "
        "tells; bytes_written leaves them out then.",
    )


class PlannedArtifact(_Answer):
    """What will come out."""

    format: Literal["compressed-tensors", "safetensors", "pt2", "parquet"]
    bytes: int = Field(
        description="Of its safetensors files, or of its .pt2; of answers where nothing else is."
    )
    total_bytes: int = Field(description="Of all its files but manifest.json.")
    size_ratio: float = Field(description="Artifact bytes over model bytes, as in the report.")


class PlannedMemory(_Answer):
    """What the job's processes will hold."""

    predicted_peak_bytes: int = Field(
        description="The most that they hold together: `memory.measured_peak_bytes` in the report."
    )
    idle_bytes: int = Field(description="A runner before it touches a model.")
    inspection_bytes: int | None = Field(
        description="The process that asks transformers which module is which. Null where the "
        "table of known architectures, or names and shapes, tell."
    )
    buffer_bytes: int = Field(description="What the job's threads read, compute and write in.")
    device_peak_bytes: int | None = Field(
        description="The most that torch will reserve on the GPU. Null where workers have none."
    )
    threads: int
    chunk_bytes: int = Field(description="How much of a tensor a thread has in memory at a time.")
    is_measured: bool = Field(
        description="Whether the idle level was measured by a worker; otherwise it is a default."
    )


class SmallestBudget(_Answer):
    """The smallest budget in which the job runs; of memory about, where it runs the model."""

    host_memory: int
    device_memory: int | None = Field(description="Null where workers have no GPU.")
    disk: int


class PlanDocument(_Answer):
    """What a job would do and cost. Nothing was run."""

    fits: bool = Field(description="False where the budget is certainly too small.")
    overruns: tuple[str, ...] = Field(description="Members of the budget that are too small.")
    smallest_budget: SmallestBudget
    is_exact: bool = Field(
        description="Whether it is certain which module is which. False for a config that the "
        "table of known architectures does not know: names and shapes were asked instead."
    )
    bytes_read: int
    bytes_written: int
    steps: tuple[PlannedStep, ...]
    artifact: PlannedArtifact
    memory: PlannedMemory
    skipped: dict[str, int] = Field(
        description="How many tensors a step leaves alone, by the reason."
    )


class SuggestionDocument(_Answer):
    """A recipe that reaches the goal. Nothing was run."""

    recipe: dict[str, Any] = Field(
        description="Complete, as `POST /jobs` takes it for `spec`; defaults are left out."
    )
    loss: float = Field(
        description="Predicted: the root mean square, over all weights that could be rounded, of "
        "their relative RMSE. One that stays float counts as 0, and of one that loses channels "
        "their share of its squares counts too. It says nothing of what the model answers: "
        "`evaluate` does."
    )
    plan: PlanDocument = Field(description="What a job with the recipe would do and cost.")
    loaders: dict[str, Loader] = Field(description="What opens the artifact.")


class SuggestionsDocument(_Answer):
    """Recipes that reach a goal, by predicted loss."""

    model: str
    model_bytes: int = Field(description="Of its tensor files.")
    suggestions: tuple[SuggestionDocument, ...] = Field(
        min_length=1, max_length=3, description="The one with the least loss first."
    )


class PlanAnswer(RootModel[PlanDocument | SuggestionsDocument]):
    """The plan of a recipe, or the recipes for a goal."""
