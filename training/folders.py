"""A transformers folder as something that can be trained."""

import inspect
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from engine.inspection import find_module_kinds
from evaluation.faults import blamed_on
from evaluation.inputs import MASK, Batch, batches_of
from evaluation.outputs import is_causal
from evaluation.processors import special_tokens
from evaluation.skeletons import Skeleton
from jobs.checkpoint import open_checkpoint
from jobs.finetuning import FinetuneStep, Lora
from jobs.problems import Problem
from jobs.recipe import Recipe
from jobs.training import QuantizeAware
from planning.plan import make_plan
from training.adapters import adaptable_names, add_adapters, merge_adapters, save_adapters
from training.labels import refuse_wrong_labels
from training.masking import Masking
from training.precision import has_bf16
from training.rounded_modules import describe, find_rounded, round_modules
from training.rows import is_padding_free
from training.written_folders import write_folder

#: Where adapters lie that are kept apart.
ADAPTER_FOLDER = "adapter"
_NOT_DISTILLED = ("masked_lm", "regression")
_NO_MATCH = "No module that can be trained has a name that matches include and not exclude."
#: Rows of a data set that are read at a time, at most, however many make an effective batch.
_READ_ROWS = 64
_BATCH_NORMS = (torch.nn.modules.batchnorm._BatchNorm,)  # noqa: SLF001 - the base of them all


class TrainedFolder:
    """A model of a transformers folder, its floats in float32.

    Args:
        folder: The folder; it is only read.
        step: What is to be done.
        device: Where it is trained.

    Attributes:
        name: What it is called in problems.
        module: The model, in training mode but for batch normalizations.
        objective: What it learns.
        frozen_statistics: How many normalizations keep the statistics that they came with.
        masking: How tokens are hidden, where that is what it learns.
        padding: The token that config.json names for it.
        rounding_bytes: What its largest rounded weight takes.

    Raises:
        Problem: `unknown_architecture`, `evaluation_failed`; `finetune_unsupported`: the objective
            is not what the class is for.
    """

    name: str
    module: torch.nn.Module
    objective: str
    frozen_statistics: int
    masking: Masking | None
    padding: Mapping[str, int]
    rounding_bytes: int = 0

    def __init__(self, folder: Path, step: FinetuneStep, device: str) -> None:
        self._checkpoint = open_checkpoint(folder)
        kinds = find_module_kinds(self._checkpoint)
        if kinds is None:
            raise Problem(
                "finetune_unsupported",
                "finetune trains transformers folders and .pt2 programs; this model has no "
                "config.json, so nothing says how it computes.",
            )
        self._kinds = kinds
        # Frozen weights keep the dtype that the library gives them; trained ones have float32.
        self._skeleton = Skeleton(self._checkpoint, kinds, None if step.method == "lora" else "F32")
        self._model: Any = self._skeleton.model
        self.name = f"A {type(self._model).__name__}"
        self.objective = _objective(self._model, step)
        self.masking = None
        if self.objective == "masked_lm":
            self.masking = _masking(folder, self._model.config.get_text_config().vocab_size)
        self.padding = _padding(self._model.config.get_text_config())
        self._skeleton.load_all()
        self.module = self._model.to(device)
        self._device = device
        self._is_bf16 = step.bf16 and has_bf16(device)
        self._trained: set[int] = set()
        self._lora: Lora | None = None
        self._takes = set(inspect.signature(self._model.forward).parameters)
        self.frozen_statistics = _set_training(self.module)

    def batches(self, dataset: Path, step: FinetuneStep) -> Iterator[Batch]:
        """Read a data set as batches of what the model takes, the first `step.rows` rows of it."""
        few = min(step.batch_size, _READ_ROWS)
        wanted = step.model_copy(update={"objective": self.objective, "batch_size": few})
        start = 0
        with blamed_on("invalid_dataset", "The data set cannot be read"):
            for batch in batches_of(self._model, self._checkpoint.folder, dataset, wanted):
                if batch.labels is not None:
                    shape = [None, self._model.config.num_labels]
                    refuse_wrong_labels(batch.labels, self.objective, shape, start)
                start += batch.rows
                yield batch

    def trained_parameters(self, step: FinetuneStep) -> Mapping[str, torch.nn.Parameter]:
        """Give the parameters that the step trains, by name, each once; all others are frozen."""
        if step.method == "lora":
            return self.adapt(step)
        trained = {}
        for name, parameter in self.module.named_parameters():
            is_trained = _is_selected(name.rpartition(".")[0], step)
            parameter.requires_grad_(is_trained)
            if is_trained:
                trained[name] = parameter
        if not trained:
            raise Problem("nothing_changed", _NO_MATCH)
        self._trained = {id(parameter) for parameter in trained.values()}
        return trained

    def adapt(self, step: FinetuneStep) -> Mapping[str, torch.nn.Parameter]:
        """Freeze all weights, put adapters beside those of the step's modules, and give them."""
        head = self._model.get_output_embeddings()
        names = [
            name
            for name in adaptable_names(self.module)
            if _is_selected(name, step)
            and (step.include is not None or self.module.get_submodule(name) is not head)
        ]
        if not names:
            raise Problem("nothing_changed", _NO_MATCH)
        dtype = self._skeleton.own_dtype
        for parameter in self.module.parameters():
            # Frozen, they need no more precision than they came with.
            parameter.data = parameter.data.to(dtype)
        self._lora = step.lora or Lora()
        adapters = add_adapters(self.module, self._lora, names, seed=step.seed)
        weights = (self.module.get_submodule(name).weight for name in names)
        self._trained = {id(weight) for weight in weights}
        return adapters

    def round_as(self, recipe: Recipe) -> QuantizeAware:
        """Compute with weights as a recipe's quantize step will round them; say what that is."""
        plan = make_plan(self._checkpoint, self._kinds, recipe)
        rounded = find_rounded(plan, self._skeleton.stored, self._skeleton.own_dtype)
        self.rounding_bytes = round_modules(self.module, rounded)
        rounds_inputs = any(what.rounds_inputs for what in rounded.values())
        return describe(recipe, len(rounded), rounds_inputs=rounds_inputs)

    def set_training(self) -> None:
        """Go back to training mode after the model was looked at in evaluation mode."""
        _set_training(self.module)

    def logits(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run it on a micro-batch: [B, T, C] where tokens are predicted, else [B, C]."""
        given = {name: tensor.to(self._device) for name, tensor in inputs.items()}
        if is_padding_free(inputs):
            # Without a mask, attention is computed by kernels that never hold its scores.
            given.pop(MASK, None)
        given = {name: tensor for name, tensor in given.items() if name in self._takes}
        lower = torch.autocast(self._device, torch.bfloat16, enabled=self._is_bf16)
        with lower, blamed_on("invalid_dataset", f"{self.name} does not take the rows"):
            answer = getattr(self._model(**given), "logits", None)
        if not isinstance(answer, torch.Tensor):
            raise Problem("finetune_unsupported", f"{self.name} gives no logits.")
        return answer

    def checkpoint_activations(self) -> bool:
        """Have activations computed again where gradients need them; False where it cannot."""
        if not self._model.supports_gradient_checkpointing:
            return False
        self._model.gradient_checkpointing_enable({"use_reentrant": False})
        return True

    def write(self, folder: Path) -> Mapping[str, int]:
        """Write the model with the weights that it has now; what was not trained is copied."""
        lost: Mapping[str, int] = {}
        if self._lora is not None and not self._lora.merge:
            save_adapters(self.module, self._lora, folder / ADAPTER_FOLDER)
            self._trained = set()
        elif self._lora is not None:
            lost = merge_adapters(self.module)
        weights = {}
        for name, stored in self._skeleton.stored.items():
            values = self._model.get_parameter_or_buffer(name)
            if id(values) in self._trained:
                weights[stored] = values
        write_folder(self._checkpoint, self._kinds, weights, folder)
        return lost


def _objective(model: Any, step: FinetuneStep) -> str:  # noqa: ANN401
    """Tell what a model learns, from what its class is for."""
    kind = type(model).__name__
    if is_causal(model):
        own = "causal_lm"
    elif kind.endswith(("ForSequenceClassification", "ForImageClassification")):
        own = "regression" if model.config.num_labels == 1 else "classification"
    elif kind.endswith("ForMaskedLM"):
        own = "masked_lm"
    else:
        raise Problem(
            "finetune_unsupported",
            f"A {kind} has no head that finetune trains: those are of causal and masked language "
            "models and of classification. Upload a folder whose `architectures` names one.",
        )
    wanted = own if step.objective == "auto" else step.objective
    # Values may be learned by as many outputs as there are classes; a class needs two to choose.
    if wanted != own and (wanted, own) != ("regression", "classification"):
        raise Problem("finetune_unsupported", f"A {kind} learns {own}, and the step says {wanted}.")
    if own == "classification" and model.config.problem_type == "multi_label_classification":
        raise Problem(
            "finetune_unsupported",
            "config.json says that a row has several labels (problem_type), and finetune learns "
            "one class for each row.",
        )
    if step.distill and wanted in _NOT_DISTILLED:
        raise Problem(
            "finetune_unsupported",
            "distill learns another model's shares of classes or of next tokens, and the objective "
            f"is {wanted}. Leave distill out.",
        )
    return wanted


def _masking(folder: Path, vocabulary: int) -> Masking:
    mask_token, special = special_tokens(folder)
    if mask_token >= vocabulary:
        raise Problem(
            "finetune_unsupported",
            f"The folder's tokenizer hides a token by {mask_token}, and the model knows tokens "
            f"from 0 to {vocabulary - 1}.",
        )
    return Masking(mask_token, special, vocabulary)


def _padding(config: Any) -> dict[str, int]:  # noqa: ANN401 - transformers has no types
    token = getattr(config, "pad_token_id", None)
    # A config may name one that the model has no embedding for.
    if isinstance(token, int) and 0 <= token < config.vocab_size:
        return {"input_ids": token}
    return {}


def _set_training(module: torch.nn.Module) -> int:
    """Turn dropout on and leave batch normalizations as they are."""
    module.train()
    norms = [part for part in module.modules() if isinstance(part, _BATCH_NORMS)]
    for norm in norms:
        norm.eval()
    return len(norms)


def _is_selected(module: str, step: FinetuneStep) -> bool:
    is_wanted = step.include is None or _matches(module, step.include)
    return is_wanted and not _matches(module, step.exclude)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
