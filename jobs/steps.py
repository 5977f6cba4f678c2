"""The steps of a recipe: what can be done to a model, and with what choices."""

from typing import Annotated, Any, Literal, get_args

from pydantic import ByteSize, Field, model_validator

from jobs.finetuning import FinetuneStep
from jobs.inferring import InferStep
from jobs.strict import Pattern, Strict


class PruneStep(Strict):
    """Set weights to zero, an exact number of them."""

    op: Literal["prune"]
    method: Literal["magnitude", "random", "wanda"] = Field(
        "magnitude",
        description="What decides: the smallest absolute values, a seeded draw, or absolute values "
        "times the norms of their inputs (`wanda`, which needs `calibrate`).",
    )
    structure: Literal["unstructured", "2:4", "4:8"] = Field(
        "unstructured",
        description="`unstructured`, or N zeros in every group of M consecutive inputs.",
    )
    sparsity: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Fraction of weights that become zero, in [0, 1). N:M structures imply 0.5.",
    )
    scope: Literal["tensor", "row", "global"] = Field(
        "tensor",
        description="Within what the fraction is counted. Default: `tensor`, of `wanda` `row`.",
    )
    biases: bool = Field(False, description="Prune the biases of the selected modules too.")
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of `method: random`.")
    include: tuple[Pattern, ...] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="fnmatch patterns on module names. Default: every Linear and Conv but the "
        "output head; embeddings and the head only where a pattern names them.",
    )
    exclude: tuple[Pattern, ...] = Field(
        (), max_length=1000, description="fnmatch patterns on module names, applied last."
    )

    @model_validator(mode="before")
    @classmethod
    def _counted_per_row(cls, members: Any) -> Any:  # noqa: ANN401 - whatever the recipe holds
        if isinstance(members, dict) and members.get("method") == "wanda":
            is_grouped = members.get("structure", "unstructured") != "unstructured"
            return members if is_grouped else {"scope": "row", **members}
        return members

    @model_validator(mode="after")
    def _weighted(self) -> "PruneStep":
        if not self.is_calibrated:
            return self
        if self.scope == "global":
            raise ValueError("wanda compares the weights of a row or of a tensor, not of all")
        if self.biases:
            raise ValueError("wanda has no inputs to weigh biases with; leave biases out")
        return self

    @model_validator(mode="after")
    def _consistent(self) -> "PruneStep":
        if self.structure == "unstructured":
            if self.sparsity is None:
                raise ValueError("sparsity is needed, for example 0.5")
            return self
        if self.sparsity not in (None, 0.5):
            raise ValueError(f"structure {self.structure} means sparsity 0.5; leave sparsity out")
        if self.scope != "tensor":
            raise ValueError(f"structure {self.structure} is counted per group; leave scope out")
        if self.biases:
            raise ValueError(f"structure {self.structure} has no meaning for biases")
        return self

    @property
    def is_calibrated(self) -> bool:
        """Whether data decide which weights go."""
        return self.method == "wanda"


class ShrinkStep(Strict):
    """Remove whole attention heads, MLP channels and layers, so that tensors become smaller."""

    op: Literal["shrink"]
    width: float | None = Field(
        None, gt=0, lt=1, description="Fraction of heads and channels that is kept."
    )
    layers: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Fraction of layers that is kept: the first ones and the last. Default: all.",
    )
    round_to: int = Field(
        1, ge=1, le=256, description="Kept channels are a multiple of this, rounded up."
    )
    importance: Literal["magnitude", "activation", "taylor"] = Field(
        "magnitude",
        description="What decides: the weights that a head or channel passes through; the weights "
        "that take its output times what it puts out (`activation`); or its weights times their "
        "gradients (`taylor`). The latter two need `calibrate`.",
    )
    include: tuple[Pattern, ...] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="fnmatch patterns on module names. Default: attention and MLP of every layer.",
    )
    exclude: tuple[Pattern, ...] = Field(
        (), max_length=1000, description="fnmatch patterns on module names, applied last."
    )

    @model_validator(mode="after")
    def _says_what(self) -> "ShrinkStep":
        if self.width is None and self.layers is None:
            raise ValueError("width is needed, for example 0.75; or layers")
        if self.is_calibrated and self.width is None:
            raise ValueError("importance chooses heads and channels, so width is needed with it")
        return self

    @property
    def is_calibrated(self) -> bool:
        """Whether data decide what it keeps."""
        return self.importance != "magnitude"


class QuantizeStep(Strict):
    """Round weights to int8, symmetric, one scale per output channel or per group of inputs."""

    op: Literal["quantize"]
    scheme: Literal["w8a16", "w8a8"] = Field(
        description="`w8a16`: weights only. `w8a8`: activations too, rounded at run time per token."
    )
    method: Literal["gptq"] | None = Field(
        None,
        description="How weights of Linears find their steps. Default: each takes its nearest one. "
        "`gptq`: each makes up for the errors of those before, which needs `calibrate`.",
    )
    smooth: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="SmoothQuant's alpha, such as 0.5, for `w8a8`: inputs that are far larger than "
        "others become smaller, and their weights larger. It needs `calibrate`. Default: none.",
    )
    group_size: int | None = Field(
        None,
        ge=16,
        le=4096,
        multiple_of=4,
        description="How many consecutive inputs of a channel share a scale, such as 128; `w8a16` "
        "only. Default: all of them. Weights whose inputs it does not divide stay float.",
    )
    embeddings: bool | None = Field(
        None,
        description="Round embeddings too, one scale per row; tied ones stay float. transformers "
        "and load.py open the artifact, vLLM does not. Default: they stay float.",
    )
    target_bytes: ByteSize | None = Field(
        None,
        gt=0,
        description="Size of the artifact's files, such as `600MiB`. The weights that rounding "
        "harms most, by the byte, stay float as long as the artifact is no larger. Default: none.",
    )
    max_relative_rmse: float | None = Field(
        None,
        gt=0,
        description="A weight that rounding would change by more than this, as relative RMSE, "
        "stays float, and so does what loaders fuse with it. Default: none.",
    )
    include: tuple[Pattern, ...] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="fnmatch patterns on module names. Default: every Linear and Conv but the "
        "output head, and with `embeddings` every embedding.",
    )
    exclude: tuple[Pattern, ...] = Field(
        (), max_length=1000, description="fnmatch patterns on module names, applied last."
    )

    @model_validator(mode="after")
    def _grouped_weights_only(self) -> "QuantizeStep":
        if self.group_size is not None and self.scheme != "w8a16":
            raise ValueError("group_size is for scheme w8a16; w8a8 has one scale per channel")
        return self

    @model_validator(mode="after")
    def _calibrated(self) -> "QuantizeStep":
        if self.smooth is not None and self.scheme != "w8a8":
            raise ValueError("smooth is for scheme w8a8; w8a16 rounds no activations")
        if self.is_calibrated and self.is_aimed:
            raise ValueError("gptq and smooth round everything; leave the aims or these out")
        return self

    @property
    def is_calibrated(self) -> bool:
        """Whether data decide what weights become."""
        return self.method == "gptq" or self.smooth is not None

    @property
    def is_aimed(self) -> bool:
        """Whether what stays float depends on the weights themselves."""
        return self.target_bytes is not None or self.max_relative_rmse is not None


class MeasureStep(Strict):
    """Find out what rounding and shrinking would lose, once for a model; it makes no artifact."""

    op: Literal["measure"]

    @property
    def is_calibrated(self) -> bool:
        """Whether data decide what it finds; they do not."""
        return False


AnyStep = ShrinkStep | PruneStep | FinetuneStep | QuantizeStep | InferStep | MeasureStep
Step = Annotated[AnyStep, Field(discriminator="op")]

#: What `op` may say.
OPS: tuple[str, ...] = tuple(
    get_args(step.model_fields["op"].annotation)[0] for step in get_args(get_args(Step)[0])
)


def method_of(step: AnyStep) -> str:
    """Give what of a step names its method: plans and reports show it beside the op."""
    match step:
        case ShrinkStep():
            return step.importance
        case PruneStep() | FinetuneStep():
            return step.method
        case QuantizeStep():
            return step.scheme
        case InferStep():
            return step.output
        case MeasureStep():
            return "rounding"
