"""What a recipe will do to a checkpoint, decided before a byte of a weight is read."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from jobs.checkpoint import INDEX_NAME, Checkpoint
from jobs.problems import Problem
from jobs.recipe import Recipe
from planning.cuts import Shrinkage
from planning.layout import ShardPlan, plan_shards
from planning.module_kinds import ModuleKinds
from planning.selection import Selection, select
from planning.side_files import find_side_files
from planning.texts import config_text, index_text, loader_text

OutputFormat = Literal["compressed-tensors", "safetensors"]


@dataclass(frozen=True)
class Plan:
    """Everything decided about a job.

    Attributes:
        checkpoint: The model, or what a shrink step leaves of it.
        recipe: What to do.
        output_format: What the artifact is.
        selection: Which step touches which tensor.
        shards: The files of tensors, laid out to the byte.
        texts: Text files by their name.
        side_files: Files that are copied unchanged, relative to the model's folder.
        artifact_bytes: Size of all of that; the manifest, written after it, is not counted.
        shrinkage: How the checkpoint comes from the model; None where it is the model.
    """

    checkpoint: Checkpoint
    recipe: Recipe
    output_format: OutputFormat
    selection: Selection
    shards: tuple[ShardPlan, ...]
    texts: dict[str, str]
    side_files: tuple[str, ...]
    artifact_bytes: int
    shrinkage: Shrinkage | None = None

    @property
    def model(self) -> Checkpoint:
        """The model that came in."""
        return self.shrinkage.model if self.shrinkage else self.checkpoint

    @property
    def model_bytes(self) -> int:
        """Size of the model's safetensors files."""
        headers = [shard.header for shard in self.model.shards]
        return sum(header.data_start + header.data_bytes for header in headers)


def make_plan(
    checkpoint: Checkpoint,
    kinds: ModuleKinds | None,
    recipe: Recipe,
    keep_float: Mapping[str, str] | None = None,
    shrinkage: Shrinkage | None = None,
) -> Plan:
    """Decide everything about a job.

    Args:
        checkpoint: The model, or what a shrink step leaves of it.
        kinds: What its own code says about its modules; None where it has no config.
        recipe: What to do.
        keep_float: Tensors that the quantize step leaves alone, with the reason.
        shrinkage: How the checkpoint comes from the model, where the recipe shrinks.

    Returns:
        The plan. Equal headers, configs and recipes give equal plans.

    Raises:
        Problem: The checkpoint is already quantized, nothing would change, the output format
            cannot hold the result, or a step is for programs alone.
    """
    output_format = _output_format(checkpoint, recipe)
    selection = select(checkpoint, kinds, recipe, output_format, keep_float, shrinkage)
    shards = plan_shards(checkpoint, selection)
    texts = _texts(checkpoint, kinds, selection, shards, output_format)
    side_files = tuple(find_side_files(checkpoint.others))
    nbytes = (
        sum(shard.nbytes for shard in shards)
        + sum(len(text.encode()) for text in texts.values())
        + sum(checkpoint.others[name] for name in side_files)
    )
    return Plan(
        checkpoint,
        recipe,
        output_format,
        selection,
        shards,
        texts,
        side_files,
        nbytes,
        shrinkage,
    )


def _output_format(checkpoint: Checkpoint, recipe: Recipe) -> OutputFormat:
    is_quantized = any(step.op == "quantize" for step in recipe.steps)
    wanted = recipe.output.format
    if wanted == "auto":
        has_config = checkpoint.config is not None
        return "compressed-tensors" if has_config and is_quantized else "safetensors"
    if wanted == "compressed-tensors" and checkpoint.config is None:
        raise Problem(
            "output_unsupported",
            "compressed-tensors is for transformers folders, and there is no config.json. Leave "
            "output.format out: safetensors with a load.py fits this model.",
        )
    if wanted == "compressed-tensors" and not is_quantized:
        raise Problem(
            "output_unsupported",
            "compressed-tensors holds quantized models, and the recipe has no quantize step. Leave "
            "output.format out: the pruned folder opens as before.",
        )
    return wanted


def _texts(
    checkpoint: Checkpoint,
    kinds: ModuleKinds | None,
    selection: Selection,
    shards: tuple[ShardPlan, ...],
    output_format: OutputFormat,
) -> dict[str, str]:
    texts: dict[str, str] = {}
    if len(shards) > 1 or INDEX_NAME in checkpoint.others:
        texts[INDEX_NAME] = index_text(shards)
    if kinds is not None:
        texts["config.json"] = config_text(checkpoint, kinds, selection, output_format)
    is_quantized = any(target.scheme for target in selection.targets.values())
    if output_format == "safetensors" and (is_quantized or kinds is None):
        texts["load.py"] = loader_text()
    return texts
