"""The recipe: what a client asks to be done to a model.

One schema for YAML and JSON, published in openapi.yaml. Unknown keys are refused, and every error
carries a JSON pointer. Only what the service really does is in here.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field, ValidationError, model_validator

from jobs.finetuning import FinetuneStep
from jobs.inferring import InferStep
from jobs.problems import Detail, Problem
from jobs.recipe_text import load_document
from jobs.step_order import (
    parts_of,
    refuse_disorder,
    refuse_uncalibrated,
    refuse_unrounded,
    without_infer,
)
from jobs.steps import OPS, AnyStep, QuantizeStep, ShrinkStep, Step
from jobs.strict import DatasetId, Strict

#: To be raised with every change after which some model and recipe give an artifact of other bytes.
ENGINE_VERSION = 2

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


class Budget(Strict):
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


class Evaluate(Strict):
    """Run the model before and after, and compare; transformers folders and .pt2 programs."""

    dataset: DatasetId | None = Field(
        None,
        description="A data set's id: texts and perhaps labels in JSON lines or parquet, a tar of "
        "images, or tensors by name in safetensors or .npz. Default: seeded random inputs.",
    )
    rows: int = Field(256, ge=1, le=1_000_000, description="At most so many rows, the first ones.")
    batch_size: int = Field(8, ge=1, le=4096, description="Rows that are run at a time.")
    max_length: int = Field(128, ge=2, le=32_768, description="Tokens of a row, at most.")
    seed: int = Field(0, ge=0, lt=2**63, description="Of random inputs.")
    between: bool = Field(
        False,
        description="Look after every step, not only after the last: each is then a stage of its "
        "own, whose artifact is written, verified and run.",
    )


class Calibrate(Strict):
    """The data that calibrated steps go by; transformers folders, and programs for wanda."""

    dataset: DatasetId = Field(
        description="A data set's id, of any kind that `evaluate` takes. Labels say something to "
        "`importance: taylor` alone.",
    )
    rows: int = Field(128, ge=1, le=100_000, description="At most so many rows, the first ones.")
    batch_size: int = Field(8, ge=1, le=4096, description="Rows that are run at a time.")
    max_length: int = Field(512, ge=2, le=32_768, description="Tokens of a row, at most.")


class Gate(Strict):
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


class Output(Strict):
    """What the artifact is written as."""

    format: Literal["auto", "compressed-tensors", "safetensors"] = Field(
        "auto",
        description="`auto`: compressed-tensors for a transformers folder that is quantized, plain "
        "safetensors with a load.py otherwise.",
    )


class Recipe(Strict):
    """What to do to a model, in order, and within what limits."""

    steps: tuple[Step, ...] = Field(min_length=1, max_length=16)
    budget: Budget = Budget()
    calibrate: Calibrate | None = Field(
        None, description="The data that calibrated steps need; only with such steps."
    )
    evaluate: Evaluate | None = Field(None, description="Whether and how to run the model.")
    gate: Gate = Gate()
    output: Output = Output()

    @model_validator(mode="after")
    def _ordered(self) -> "Recipe":
        refuse_disorder(self.steps)
        refuse_unrounded(self.steps)
        refuse_uncalibrated(self.steps, has_data=self.calibrate is not None)
        return self

    @model_validator(mode="after")
    def _measured(self) -> "Recipe":
        named = self.gate.model_dump(exclude_none=True).keys() - {"max_size_ratio"}
        if named and self.evaluate is None:
            raise ValueError(
                f"gate.{min(named)} needs an evaluate section, which may be empty: {{}}"
            )
        return self

    @model_validator(mode="after")
    def _compared(self) -> "Recipe":
        if self.measures:
            return self
        if self.compression is None and self.evaluate is not None:
            raise ValueError(
                "evaluate compares a model with what becomes of it; infer changes none"
            )
        if self.compression is None and self.gate != Gate():
            raise ValueError("gate is about what becomes of a model; infer changes none")
        lora = self.finetune_step.lora if self.finetune_step else None
        if lora is not None and not lora.merge and self.evaluate is not None:
            raise ValueError(
                "evaluate runs the weights of the artifact, which adapters that are not merged "
                "leave as they were; merge them, or leave evaluate out"
            )
        return self

    @model_validator(mode="after")
    def _made(self) -> "Recipe":
        sections = ("evaluate", "gate", "output")
        named = [name for name in sections if getattr(self, name) not in (None, Gate(), Output())]
        if self.measures and named:
            raise ValueError(f"measure makes no artifact; leave {' and '.join(named)} out")
        return self

    @property
    def measures(self) -> bool:
        """Whether the job makes no artifact, but finds out what recipes would lose."""
        return self.steps[0].op == "measure"

    @property
    def datasets(self) -> tuple[str, ...]:
        """The data sets that the job reads, each once."""
        sections = (self.calibrate, self.finetune_step, self.evaluate, self.infer_step)
        named = (section.dataset for section in sections if section is not None)
        return tuple(dict.fromkeys(dataset for dataset in named if dataset is not None))

    @property
    def runs_model(self) -> bool:
        """Whether the job runs the model, rather than only reading its weights."""
        sections = (self.calibrate, self.finetune_step, self.evaluate, self.infer_step)
        return any(section is not None for section in sections)

    @property
    def stages(self) -> tuple["Recipe", ...]:
        """Recipes of those steps that one pass does together, in order; itself where one does all.

        All but the last give the next one a model of the same form as the one that came in, which
        may be larger than the artifact. An infer step is in none of them: it changes no model. One
        that trains for the rounding of the next does not say so, as it has no such step itself.
        """
        is_split = self.evaluate is not None and self.evaluate.between
        steps = without_infer(self.steps)
        parts = [(step,) for step in steps] if is_split else parts_of(steps)
        last = len(parts) - 1
        whole_disk = self.budget.model_copy(update={"disk": None})
        return tuple(
            self.model_copy(
                update={
                    "steps": tuple(_by_itself(step) for step in part),
                    "calibrate": self.calibrate if any(s.is_calibrated for s in part) else None,
                    "output": self.output if i == last else Output(),
                    "budget": self.budget if i == last else whole_disk,
                }
            )
            for i, part in enumerate(parts)
        )

    @property
    def finetune_step(self) -> FinetuneStep | None:
        """The step that trains; None without one."""
        return next((step for step in self.steps if isinstance(step, FinetuneStep)), None)

    @property
    def infer_step(self) -> InferStep | None:
        """The step that runs the model over a data set; None without one."""
        last = self.steps[-1]
        return last if isinstance(last, InferStep) else None

    @property
    def compression(self) -> "Recipe | None":
        """All of it that changes the model: no infer step; None where nothing does."""
        steps = without_infer(self.steps)
        if len(steps) == len(self.steps):
            return self
        return self.model_copy(update={"steps": steps}) if steps else None

    @property
    def rounding(self) -> QuantizeStep | None:
        """The quantize step; None without one."""
        last = self.steps[-1] if self.steps else None
        return last if isinstance(last, QuantizeStep) else None

    @property
    def shrink_step(self) -> ShrinkStep | None:
        """The step that makes tensors smaller before all others; None without one."""
        first = self.steps[0] if self.steps else None
        return first if isinstance(first, ShrinkStep) else None

    @property
    def aimed_step(self) -> QuantizeStep | None:
        """The quantize step that needs to know its weights' errors first; None without one."""
        return self.rounding if self.rounding and self.rounding.is_aimed else None


def _by_itself(step: AnyStep) -> AnyStep:
    """Give a step without what it says of the next one."""
    if isinstance(step, FinetuneStep) and step.quantize_aware:
        return step.model_copy(update={"quantize_aware": None})
    return step


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


def _detail(fault: dict[str, Any], prefix: str) -> Detail:
    # pydantic puts the chosen member of a union ("prune") into the location; a pointer has no such
    # part, so it is dropped where it follows a step's number.
    parts: list[str] = []
    for i, part in enumerate(fault["loc"]):
        if part in OPS and i == 2 and fault["loc"][0] == "steps":
            continue
        parts.append(str(part).replace("~", "~0").replace("/", "~1"))
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        message = "is not a key that the recipe knows"
    elif fault["type"] == "union_tag_invalid":
        message = (
            f"op {fault['ctx']['tag']!r} is not offered; this service offers {' and '.join(OPS)}"
        )
    elif fault["type"] == "union_tag_not_found":
        message = f"op is missing; this service offers {' and '.join(OPS)}"
    return Detail(prefix + "".join(f"/{part}" for part in parts), fault["type"], message)
