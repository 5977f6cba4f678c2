"""The finetune step of a recipe: on what a model is trained, for how long, and how."""

from typing import Literal

from pydantic import Field, model_validator

from jobs.strict import DatasetId, Pattern, Strict

#: What saves memory in training, in the order in which it is turned on.
Saving = Literal[
    "return_freed_memory",
    "activation_checkpointing",
    "adamw8bit",
    "lora",
    "offload_optimizer",
    "optimizer_in_backward",
]
SAVINGS: tuple[Saving, ...] = (
    "return_freed_memory",
    "activation_checkpointing",
    "adamw8bit",
    "lora",
    "offload_optimizer",
    "optimizer_in_backward",
)


class Lora(Strict):
    """Low-rank adapters beside frozen weights (arXiv 2106.09685)."""

    rank: int = Field(8, ge=1, le=1024, description="Inner dimension of an adapter.")
    alpha: float = Field(16.0, gt=0, description="An adapter's output is scaled by alpha / rank.")
    merge: bool = Field(
        True,
        description="Add adapters to the weights that they stand beside, zeros apart. Otherwise "
        "they are kept in a folder `adapter`, as peft writes one.",
    )


class FinetuneStep(Strict):
    """Train the model, a few rows at a time, as if all rows of a step were in memory at once."""

    op: Literal["finetune"]
    dataset: DatasetId = Field(
        description="A data set's id: texts and perhaps labels in JSON lines or parquet, a tar of "
        "images, or tensors by name in safetensors or .npz."
    )
    objective: Literal["auto", "causal_lm", "masked_lm", "classification", "regression"] = Field(
        "auto", description="What is learned. Default: what the model's class is for."
    )
    method: Literal["full", "lora"] = Field(
        "full", description="`full`: every weight that is selected; `lora`: adapters beside them."
    )
    steps: int | None = Field(
        None, ge=1, le=10_000_000, description="How many optimizer steps; or give `epochs`."
    )
    epochs: float | None = Field(
        None, gt=0, le=10_000, description="How often every row is seen; or give `steps`."
    )
    rows: int = Field(
        1_000_000, ge=1, le=10_000_000, description="At most so many rows, the first ones."
    )
    max_length: int = Field(512, ge=2, le=131_072, description="Tokens of a row, at most.")
    batch_size: int = Field(
        32, ge=1, le=65_536, description="Rows of one optimizer step: the effective batch."
    )
    micro_batch_size: int | Literal["auto"] = Field(
        "auto",
        description="Rows that are in memory at one time. `auto`: as many as the budget allows. "
        "The gradient is that of the effective batch whatever it is.",
    )
    optimizer: Literal["adamw", "adamw8bit", "adafactor", "sgd"] = Field(
        "adamw", description="`adamw8bit`: AdamW whose moments take a byte each."
    )
    learning_rate: float = Field(1e-4, gt=0, le=10, description="The largest one.")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "linear", description="How the learning rate goes to 0 after `warmup_steps`, if it does."
    )
    warmup_steps: int = Field(0, ge=0, description="Steps in which the learning rate rises.")
    weight_decay: float = Field(0.0, ge=0, lt=1, description="Decoupled, but for sgd.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Of sgd.")
    max_grad_norm: float | None = Field(
        1.0, gt=0, description="Norm that a step's gradient is clipped to, once; null never clips."
    )
    lora: Lora | None = Field(None, description="Of `method: lora`. Default: rank 8.")
    savings: tuple[Saving, ...] = Field(
        (
            "return_freed_memory",
            "activation_checkpointing",
            "adamw8bit",
            "offload_optimizer",
            "optimizer_in_backward",
        ),
        max_length=len(SAVINGS),
        description="What may be turned on, in this order, where a single row does not fit the "
        "budget otherwise. `lora` trains other weights, so it is not unless it is named; "
        "`offload_optimizer` is only on a GPU, and `optimizer_in_backward` only where it changes "
        "nothing: one row a step, never clipped.",
    )
    distill: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How much of the loss is the divergence from what the uncompressed model "
        "answers, rather than from the labels or tokens.",
    )
    temperature: float = Field(1.0, ge=0.01, le=100, description="Of `distill`.")
    quantize_aware: bool | None = Field(
        None,
        description="Compute with weights as the quantize step that follows will round them "
        "(w8a8: inputs too), so that training makes up for it. Default: with weights as they are.",
    )
    bf16: bool = Field(
        False,
        description="Compute layers in bfloat16 where the device has it (torch.autocast); weights, "
        "gradients, moments and losses are float32 all the same.",
    )
    evaluate_every: int | None = Field(
        None, ge=1, description="Steps between two looks at held-out rows. Default: never."
    )
    evaluation_rows: int = Field(
        64, ge=1, le=100_000, description="The last rows, which are held out for `evaluate_every`."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Looks without a lower loss after which training ends early. Default: never.",
    )
    keep_best: bool = Field(
        False, description="Give the weights of the look with the lowest loss, not the last ones."
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Of the rows' order, dropout and masks.")
    include: tuple[Pattern, ...] | None = Field(
        None,
        min_length=1,
        max_length=1000,
        description="fnmatch patterns on module names whose weights are trained. Default: all.",
    )
    exclude: tuple[Pattern, ...] = Field(
        (), max_length=1000, description="fnmatch patterns on module names, applied last."
    )

    @model_validator(mode="after")
    def _ends(self) -> "FinetuneStep":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("say how long it is trained: steps, for example 200, or epochs")
        if isinstance(self.micro_batch_size, int) and not (
            1 <= self.micro_batch_size <= self.batch_size
        ):
            raise ValueError(f"micro_batch_size is from 1 to batch_size, {self.batch_size}")
        return self

    @model_validator(mode="after")
    def _belongs_together(self) -> "FinetuneStep":
        if self.lora is not None and self.method != "lora" and "lora" not in self.savings:
            raise ValueError("lora is for method: lora, or where savings name it")
        if self.lora is not None and not self.lora.merge and self.method != "lora":
            raise ValueError(
                "adapters are only kept apart with method: lora; as a saving, nobody knows before "
                "whether there will be any"
            )
        if self.evaluate_every is None and (self.patience is not None or self.keep_best):
            raise ValueError("patience and keep_best go by held-out rows: give evaluate_every")
        if self.distill and self.objective in ("masked_lm", "regression"):
            raise ValueError(f"distill is for classes and next tokens, not for {self.objective}")
        if len(set(self.savings)) != len(self.savings):
            raise ValueError("savings names one of them twice")
        if self.quantize_aware and self.bf16:
            raise ValueError(
                "quantize_aware computes with what int8 will hold, which bfloat16 would round once "
                "more; leave one of the two out"
            )
        if self.quantize_aware and (self.method == "lora" or "lora" in self.savings):
            raise ValueError(
                "quantize_aware trains the weights that are rounded, and adapters are added to "
                "them after training; leave one of the two out"
            )
        return self

    @property
    def is_calibrated(self) -> bool:
        """Whether it needs the calibrate section; it has a data set of its own."""
        return False
