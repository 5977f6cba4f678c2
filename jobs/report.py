"""The report of a job: what was measured, before next to after.

The runner writes it, the service hands it out as JSON or HTML, the client prints it. All sizes are
bytes (int), all times seconds (float).
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs.inference import Inference
from jobs.quality import Agreement, Calibration, Quality, Running
from jobs.shrunk import Shrunk
from jobs.training import Training

Bytes = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]


class _Value(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelFacts(_Value):
    """The model that came in."""

    format: str
    architecture: str | None
    bytes: Bytes = Field(description="Bytes of its safetensors files, or of its .pt2.")
    parameters: Count
    parameters_by_dtype: dict[str, Count]


class ArtifactFacts(_Value):
    """The artifact that came out."""

    format: Literal["compressed-tensors", "safetensors", "pt2", "parquet"]
    bytes: Bytes = Field(
        description="Bytes of its safetensors files, or of its .pt2; of the answers where the "
        "recipe only infers."
    )
    size_ratio: float = Field(description="Artifact bytes over model bytes.")


class HostMemory(_Value):
    """Peaks of the runner's resident memory, sampled from the kernel's own counters."""

    anonymous_peak_bytes: Bytes = Field(description="Memory that belongs to the process alone.")
    file_peak_bytes: Bytes = Field(description="Page cache mapped into the process.")
    resident_peak_bytes: Bytes = Field(description="Peak of the sum of both.")


class DeviceMemory(_Value):
    """Peaks of the CUDA allocator."""

    allocated_peak_bytes: Bytes = Field(description="Held by tensors.")
    reserved_peak_bytes: Bytes = Field(description="Held by the allocator.")
    predicted_peak_bytes: Bytes | None = Field(
        None, description="What the plan said of `reserved_peak_bytes`."
    )
    budget_bytes: Bytes | None = Field(None, description="budget.device_memory, if one was given.")
    headroom_bytes: int | None = Field(None, description="Budget minus reserved peak.")


class Memory(_Value):
    """Memory of the whole job."""

    idle: HostMemory = Field(description="The runner before it touched the model.")
    peak: HostMemory = Field(description="The runner while it worked.")
    device: DeviceMemory | None = Field(description="None where no device was used.")
    inspection_peak_bytes: Bytes | None = Field(
        None,
        description="Resident peak of the short process that asked transformers which module is "
        "which; it ends before the model is read. None where the table of architectures told.",
    )
    predicted_peak_bytes: Bytes | None = Field(
        None, description="What the plan said of `measured_peak_bytes` before the model was read."
    )
    measured_peak_bytes: Bytes = Field(
        description="The most that the job's processes held together: the largest of the runner's "
        "resident peak, of the idle runner with its inspection, and of the verifying process."
    )
    added_anonymous_bytes: Bytes = Field(
        description="Peak anonymous memory above the idle level: what this job cost."
    )
    budget_bytes: Bytes | None = Field(description="budget.host_memory, where one was given.")
    headroom_bytes: int | None = Field(description="Budget minus measured peak.")


class StepReport(_Value):
    """One step of the recipe."""

    op: Literal["shrink", "prune", "finetune", "quantize", "infer"]
    method: str = Field(
        description="As in the recipe; the scheme of a quantize step, the importance of a shrink "
        "step, the output of an infer step."
    )
    seconds: Seconds = Field(description="Time spent in the step's own arithmetic.")
    bytes_read: Bytes = Field(
        description="Read for this step alone. The pass that writes the artifact reads every "
        "tensor once for all steps, and counts for the last one."
    )
    bytes_written: Bytes
    tensors_changed: Count
    weights_pruned: Count = Field(description="Weights that this step set to zero; 0 for quantize.")
    weights_removed: Count = Field(0, description="Weights that a shrink step left out.")


class TensorState(_Value):
    """A tensor before or after."""

    dtype: str = Field(
        description="Of the weight; of the packed or int8 weight after quantization."
    )
    bytes: Bytes = Field(description="With its scale and shape, where quantized.")
    sparsity: float = Field(description="Fraction of exact zeros.")


class TensorReport(_Value):
    """One tensor that the job changed.

    Of one that shrink cut, `before` is all of it, and sparsities and errors are of what is kept.
    """

    name: str
    shape: tuple[int, ...]
    shape_before: tuple[int, ...] | None = Field(
        None, description="Before shrink cut it; None where its shape is the model's."
    )
    before: TensorState
    after: TensorState
    relative_rmse: float = Field(
        description="Root mean square of the difference over that of the weight, after all steps."
    )
    max_error_steps: float | None = Field(
        description="Largest rounding difference in units of the scale; None where not quantized."
    )


class Skipped(_Value):
    """A tensor that a step could have changed and did not, and why."""

    name: str
    op: Literal["shrink", "prune", "quantize"]
    reason: str


class Sensitivity(_Value):
    """What rounding a weight would lose, found out before anything was written."""

    name: str
    relative_rmse: float = Field(
        description="Of the rounding alone, relative to the weight as pruning leaves it."
    )
    saved_bytes: int = Field(description="What quantizing it saves, headers apart.")
    kept_float: bool = Field(description="Whether it stays float for that.")


class Loader(_Value):
    """Whether a loader of the ecosystem opens the artifact."""

    ok: bool
    note: str


class Speed(_Value):
    """How fast the job ran."""

    total_seconds: Seconds = Field(description="Of the compression, without queueing or hashing.")
    input_bytes_per_second: float


class Resumed(_Value):
    """What an attempt found done by attempts before it that were killed."""

    bytes_skipped: Bytes = Field(
        description="What they had read for it, in all passes, and this attempt did not read again."
    )


class Verification(_Value):
    """What a process of its own compared with the model before the job succeeded.

    Every tensor is in the artifact, with the dtype, shape and place that loaders expect. In the
    rows that were looked at, int8 values lie within half a step of the weights, pruned weights are
    0, and all others have the bits they had.
    """

    tensors: Count = Field(description="Tensors of the model; all of them were looked at.")
    rows: Count = Field(description="Rows of them that were read, or parts of very long ones.")
    max_error_steps: float | None = Field(
        description="Largest rounding difference in units of the scale; None where nothing is int8."
    )
    seconds: Seconds
    peak_bytes: Bytes = Field(description="Resident peak of that process.")


class StageReport(_Value):
    """Consecutive steps that one pass did, where it took several."""

    steps: tuple[int, ...] = Field(description="Their numbers, from 1.")
    artifact_bytes: Bytes = Field(description="Of the weights' files that they left.")
    measured_peak_bytes: Bytes
    seconds: Seconds
    after: Running | None = Field(
        None, description="What running that gave, where the recipe evaluates between steps."
    )
    agreement: Agreement | None = Field(None, description="With the model that came in.")


class Report(_Value):
    """Everything measured about one job."""

    model: ModelFacts
    artifact: ArtifactFacts
    memory: Memory
    steps: tuple[StepReport, ...]
    stages: tuple[StageReport, ...] = Field(
        (), description="From the model to the artifact; empty where one pass did all steps."
    )
    tensors: tuple[TensorReport, ...]
    skipped: tuple[Skipped, ...]
    shrunk: Shrunk | None = Field(None, description="None where the recipe does not shrink.")
    sensitivity: tuple[Sensitivity, ...] = Field(
        (),
        description="Every weight that could be quantized, those first that gain most by the byte "
        "as floats, fused ones together; empty where the recipe aims at no size and no error.",
    )
    loaders: dict[str, Loader]
    speed: Speed = Field(description="Of the last attempt.")
    resumed: Resumed | None = Field(
        None,
        description="None where one attempt did it all. The bytes of steps and the errors of "
        "tensors are those of the whole job however many attempts it took.",
    )
    verification: Verification | None = Field(
        None, description="What was verified; None where the artifact did not pass."
    )
    calibration: Calibration | None = Field(
        None, description="What data decided; None where the recipe has no calibrated step."
    )
    training: Training | None = Field(
        None, description="What training gave; None where the recipe has no finetune step."
    )
    quality: Quality | None = Field(
        None, description="What running the model gave; None where the recipe does not evaluate."
    )
    inference: Inference | None = Field(
        None, description="The data set that the model was run over; None without an infer step."
    )
    versions: dict[str, str] = Field(
        description="What the job ran with; transformers only where it has a config, with "
        "`(table)` where the table of architectures made from it was enough."
    )

    def calibrated(self, calibration: Calibration) -> "Report":
        """Give the report of the same job with its calibration, and with what that took."""
        memory = self._with_peak(calibration.resident_peak_bytes)
        return self.model_copy(update={"calibration": calibration, "memory": memory})

    def evaluated(self, quality: Quality) -> "Report":
        """Give the report of the same job with how its model answers, and with what that took."""
        peaks = (quality.before.resident_peak_bytes, quality.after.resident_peak_bytes)
        return self.model_copy(update={"quality": quality, "memory": self._with_peak(max(peaks))})

    def inferred(self, inference: Inference, dataset_bytes: int) -> "Report":
        """Give the report of the same job with its answers, and with what these took."""
        peaks = [inference.resident_peak_bytes]
        if inference.recheck is not None:
            peaks.append(inference.recheck.resident_peak_bytes)
        step = StepReport(
            op="infer",
            method=inference.output,
            seconds=inference.seconds,
            bytes_read=dataset_bytes,
            bytes_written=inference.bytes,
            tensors_changed=0,
            weights_pruned=0,
        )
        return self.model_copy(
            update={
                "inference": inference,
                "steps": (*self.steps, step),
                "memory": self._with_peak(max(peaks)),
            }
        )

    def verified(self, verification: Verification) -> "Report":
        """Give the report of the same job with what was verified, and with what that took."""
        memory = self._with_peak(verification.peak_bytes)
        return self.model_copy(update={"verification": verification, "memory": memory})

    def _with_peak(self, peak_bytes: int) -> Memory:
        peak = max(self.memory.measured_peak_bytes, peak_bytes)
        budget = self.memory.budget_bytes
        headroom = None if budget is None else budget - peak
        return self.memory.model_copy(
            update={"measured_peak_bytes": peak, "headroom_bytes": headroom}
        )
