"""The recipe: what a client asks to be done to a model.

One schema for YAML and JSON, published in openapi.yaml. Unknown keys are refused, and every error
carries a JSON pointer. Only what the service really does is in here.
"""

import json
import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from jobs.problems import Detail, Problem

#: To be raised with every change after which some model and recipe give an artifact of other bytes.
ENGINE_VERSION = 1

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
_SECONDS_PER_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_seconds(value: object) -> object:
    """Turn ``90``, ``"90s"``, ``"30m"`` or ``"2h"`` into seconds.

    Args:
        value: What stands in the recipe.

    Returns:
        Seconds where it is a duration; otherwise the value itself, for pydantic to judge.

    Raises:
        ValueError: A string that is no duration.
    """
    if not isinstance(value, str):
        return value
    match = _DURATION.fullmatch(value.strip())
    if match is None:
        raise ValueError("a duration is a number and a unit, such as 90s, 30m or 2h")
    return float(match[1]) * _SECONDS_PER_UNIT[match[2]]


Seconds = Annotated[float, BeforeValidator(parse_seconds)]
Pattern = Annotated[str, Field(min_length=1, max_length=256)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PruneStep(_Strict):
    """Set weights to zero, an exact number of them."""

    op: Literal["prune"]
    method: Literal["magnitude", "random"] = Field(
        "magnitude", description="What decides: the smallest absolute values, or a seeded draw."
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
        "tensor", description="Within what the fraction is counted."
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


class QuantizeStep(_Strict):
    """Round weights to int8, symmetric, one scale per output channel or per group of inputs."""

    op: Literal["quantize"]
    scheme: Literal["w8a16", "w8a8"] = Field(
        description="`w8a16`: weights only. `w8a8`: activations too, rounded at run time per token."
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

    @property
    def is_aimed(self) -> bool:
        """Whether what stays float depends on the weights themselves."""
        return self.target_bytes is not None or self.max_relative_rmse is not None


Step = Annotated[PruneStep | QuantizeStep, Field(discriminator="op")]


class Budget(_Strict):
    """Limits that stop the job rather than be passed."""

    host_memory: ByteSize | None = Field(
        None, gt=0, description="Peak resident memory of the runner, such as `2GiB`."
    )
    device_memory: ByteSize | None = Field(
        None,
        gt=0,
        description="Peak of what torch reserves on a GPU, such as `256MiB`; the driver's context "
        "comes on top. Without a GPU nothing is.",
    )
    disk: ByteSize | None = Field(None, gt=0, description="Size of the artifact, such as `20GiB`.")
    runtime: Seconds | None = Field(
        None, gt=0, le=14 * 86400, description="Wall clock of one attempt, such as `2h`."
    )


class Evaluate(_Strict):
    """Run the model before and after, and compare; transformers folders only."""

    dataset: str | None = Field(
        None,
        pattern=r"^ds_[0-9a-f]{64}$",
        description="A data set's id: JSON lines with a text and perhaps a label in each, or "
        "tensors by name in safetensors or .npz. Default: seeded random inputs.",
    )
    rows: int = Field(256, ge=1, le=1_000_000, description="At most so many rows, the first ones.")
    batch_size: int = Field(8, ge=1, le=4096, description="Rows that are run at a time.")
    max_length: int = Field(128, ge=2, le=32_768, description="Tokens of a row, at most.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of random inputs.")


class Gate(_Strict):
    """Conditions that the result must meet; the job fails with `gate_failed` otherwise.

    All but `max_size_ratio` are about what `evaluate` measures.
    """

    max_size_ratio: float | None = Field(
        None, gt=0, description="Artifact bytes over model bytes, at most."
    )
    min_cosine: float | None = Field(
        None, ge=-1, le=1, description="Mean cosine of outputs with the original's, at least."
    )
    max_kl_divergence: float | None = Field(
        None, ge=0, description="Mean divergence of logits from the original's in nats, at most."
    )
    min_top1_agreement: float | None = Field(
        None, ge=0, le=1, description="Fraction of equal first choices, at least."
    )
    max_accuracy_drop: float | None = Field(
        None, ge=0, le=1, description="Accuracy before minus accuracy after, at most."
    )
    max_perplexity_ratio: float | None = Field(
        None, gt=0, description="Perplexity after over perplexity before, at most."
    )
    max_latency_ratio: float | None = Field(
        None, gt=0, description="Latency at batch 1 after over that before, at most."
    )


class Output(_Strict):
    """What the artifact is written as."""

    format: Literal["auto", "compressed-tensors", "safetensors"] = Field(
        "auto",
        description="`auto`: compressed-tensors for a transformers folder that is quantized, plain "
        "safetensors with a load.py otherwise.",
    )


class Recipe(_Strict):
    """What to do to a model, in order, and within what limits."""

    steps: tuple[Step, ...] = Field(min_length=1, max_length=16)
    budget: Budget = Budget()
    evaluate: Evaluate | None = Field(None, description="Whether and how to run the model.")
    gate: Gate = Gate()
    output: Output = Output()

    @model_validator(mode="after")
    def _order(self) -> "Recipe":
        quantizations = [i for i, step in enumerate(self.steps) if step.op == "quantize"]
        if len(quantizations) > 1:
            raise ValueError("a recipe has at most one quantize step")
        if quantizations and quantizations[0] != len(self.steps) - 1:
            raise ValueError("quantize is the last step: prune first, then quantize")
        return self

    @model_validator(mode="after")
    def _measured(self) -> "Recipe":
        named = self.gate.model_dump(exclude_none=True).keys() - {"max_size_ratio"}
        if named and self.evaluate is None:
            raise ValueError(
                f"gate.{min(named)} needs an evaluate section, which may be empty: {{}}"
            )
        return self

    @property
    def dataset(self) -> str | None:
        """The data set that the job reads; None where it reads none."""
        return self.evaluate.dataset if self.evaluate else None

    @property
    def aimed_step(self) -> QuantizeStep | None:
        """The quantize step that needs to know its weights' errors first; None without one."""
        last = self.steps[-1]
        return last if isinstance(last, QuantizeStep) and last.is_aimed else None


def parse_recipe(members: object, pointer: str = "") -> Recipe:
    """Check a recipe that was already read from JSON or YAML.

    Args:
        members: The recipe as plain values.
        pointer: Where the recipe stands in the request, put before each error's pointer.

    Returns:
        The recipe.

    Raises:
        Problem: `invalid_recipe`, with a JSON pointer for each fault.
    """
    try:
        return Recipe.model_validate(members)
    except ValidationError as error:
        faults = [dict(fault) for fault in error.errors(include_url=False)]
        # A step that failed does not count as a step; saying so twice would only confuse.
        if len(faults) > 1:
            faults = [fault for fault in faults if fault["type"] != "too_short"] or faults
        details = [_detail(fault, pointer) for fault in faults]
        raise Problem(
            "invalid_recipe",
            "; ".join(f"{d.pointer or '/'}: {d.detail}" for d in details),
            errors=details,
        ) from error


def load_recipe(text: str | bytes) -> Recipe:
    """Read a recipe written in YAML or JSON.

    Args:
        text: The document; JSON is read as the YAML that it is.

    Returns:
        The recipe.

    Raises:
        Problem: `invalid_recipe`: not YAML, or not a recipe.
    """
    return parse_recipe(load_document(text))


def load_document(text: str | bytes) -> Any:  # noqa: ANN401 - whatever the document holds
    """Read one YAML or JSON document without aliases, which could grow without bound.

    Args:
        text: The document.

    Returns:
        Its plain values.

    Raises:
        Problem: `invalid_recipe`: the document cannot be read.
    """
    try:
        source = text.decode("utf-8") if isinstance(text, bytes) else text
        try:
            return json.loads(source)
        except json.JSONDecodeError:
            return yaml.load(source, Loader=_RecipeLoader)  # noqa: S506 - a SafeLoader
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Problem(
            "invalid_recipe", f"The recipe is neither JSON nor YAML: {reason}."
        ) from error


class _RecipeLoader(yaml.SafeLoader):
    """A safe loader that refuses aliases, and reads numbers as YAML 1.2 does.

    In YAML 1.1 a bare ``2:4`` is 124 (base 60) and ``1e-4`` is a string.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - yaml's own class attribute
        first: [
            (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float"))
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401 - yaml's own signature
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed in a recipe")
        return super().compose_node(parent, index)


_NUMBER_STARTS = list("-+0123456789.")
_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), _NUMBER_STARTS
)
_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$"),
    _NUMBER_STARTS,
)


def _detail(fault: dict[str, Any], prefix: str) -> Detail:
    # pydantic puts the chosen member of a union ("prune") into the location; a pointer has no such
    # part, so it is dropped where it follows a step's number.
    parts: list[str] = []
    for i, part in enumerate(fault["loc"]):
        if part in ("prune", "quantize") and i == 2 and fault["loc"][0] == "steps":
            continue
        parts.append(str(part).replace("~", "~0").replace("/", "~1"))
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        message = "is not a key that the recipe knows"
    elif fault["type"] == "union_tag_invalid":
        message = (
            f"op {fault['ctx']['tag']!r} is not offered; this service offers prune and quantize"
        )
    elif fault["type"] == "union_tag_not_found":
        message = "op is missing; this service offers prune and quantize"
    return Detail(prefix + "".join(f"/{part}" for part in parts), fault["type"], message)
