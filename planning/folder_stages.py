"""What a job on a checkpoint will cost whose recipe falls into stages, each on what one made."""

import json
from dataclasses import replace

from jobs.checkpoint import Checkpoint, Shard
from jobs.recipe import Recipe
from jobs.safetensors_header import Header, TensorSpec
from planning.memory_model import Levels
from planning.module_kinds import ModuleKinds
from planning.plan import Plan, make_plan
from planning.prediction import Prediction, joined, predict
from planning.running import (
    evaluating_bytes,
    least_evaluating_bytes,
    sufficient_evaluating_bytes,
)
from planning.shrinking import shrink


def predict_folder_stages(
    checkpoint: Checkpoint, kinds: ModuleKinds | None, recipe: Recipe, levels: Levels
) -> Prediction:
    """Predict what a job will cost whose recipe has several stages.

    Args:
        checkpoint: The model.
        kinds: What its own code says about its modules, of those that a shrink step leaves.
        recipe: What to do.
        levels: What was measured where it will run.

    Returns:
        The prediction: each stage reads what the one before it wrote, and the memory is that of the
        stage, or of the evaluation, that needs most.

    Raises:
        Problem: As `shrink` and `make_plan`.
    """
    predicted: list[Prediction] = []
    current = checkpoint
    for stage in recipe.stages:
        # What is evaluated is the model that came in, and no plan but that of all steps knows it.
        alone = stage.model_copy(update={"evaluate": None})
        shrinkage = shrink(current, alone)
        left = shrinkage.checkpoint if shrinkage else current
        plan = make_plan(left, kinds, alone, shrinkage=shrinkage)
        predicted.append(predict(plan, levels))
        current = _made_by(plan)
    whole = joined(predicted)
    held, least = evaluating_bytes(checkpoint, recipe), least_evaluating_bytes(checkpoint, recipe)
    sufficient = sufficient_evaluating_bytes(checkpoint, recipe)
    return replace(
        whole,
        host_peak_bytes=max(whole.host_peak_bytes, held),
        least_host_bytes=max(whole.least_host_bytes, least),
        sufficient_host_bytes=max(whole.sufficient_host_bytes, sufficient),
    )


def _made_by(plan: Plan) -> Checkpoint:
    """Give the checkpoint that a plan makes, which lies nowhere yet."""
    shards = []
    for shard in plan.shards:
        placed = [spec for one in shard.placements for spec in one.outputs.values()]
        tensors: tuple[TensorSpec, ...] = tuple(sorted(placed, key=lambda spec: spec.start))
        metadata = {**shard.source.header.metadata, "format": "pt"}
        shards.append(Shard(shard.source.name, Header(tensors, metadata, len(shard.header))))
    texts = dict(plan.texts)
    config = json.loads(texts.pop("config.json")) if "config.json" in texts else None
    sizes = {name: len(text.encode()) for name, text in texts.items()}
    copied = {name: plan.checkpoint.others[name] for name in plan.side_files}
    return Checkpoint(plan.checkpoint.folder, tuple(shards), config, {**copied, **sizes})
