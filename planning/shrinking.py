"""What a shrink step leaves of a model, told by headers and config alone.

Every layer keeps the same number of heads and channels, because config.json has one size for all;
which ones they are is found out from the weights, layer by layer (`engine.importance`), or of all
layers together, where a table in the first has a column for each head of all, as T5's has. Which
layers go needs no look at weights: the deepest but the last, which Gromov et al., 2024,
arXiv:2403.17887, section 4.4, found to be missed nearly as little as those that runs of the model
would name (ShortGPT, arXiv:2403.03853). So a plan is exact.
"""

from collections.abc import Mapping

from jobs.checkpoint import Checkpoint, Shard
from jobs.problems import Detail, Problem
from jobs.recipe import Recipe
from jobs.safetensors_header import Header, TensorSpec, encode_header
from planning.anatomy import Family
from planning.cuts import Cut, Group, Shrinkage
from planning.families import find_families, offered_types
from planning.shrunk_layers import Depth, choose_layers
from planning.shrunk_sizes import Sizes, choose_sizes
from planning.stacks import Layers, find_layers


def shrink(checkpoint: Checkpoint, recipe: Recipe, pointer: str = "") -> Shrinkage | None:
    """Decide what a recipe's shrink step leaves of a model.

    Args:
        checkpoint: The model.
        recipe: What to do to it.
        pointer: Where the recipe stands in the request.

    Returns:
        What is left; None where the recipe does not shrink.

    Raises:
        Problem: `shrink_unsupported`: it is no transformers folder, or of no family that can be
            shrunk. `nothing_changed`: all would be kept. `invalid_config` or `invalid_checkpoint`:
            config and tensors do not fit one another.
    """
    step = recipe.shrink_step
    if step is None:
        return None
    family, stacks = _find_family(checkpoint, f"{pointer}/steps/0")
    config = checkpoint.config or {}
    sizes = choose_sizes(stacks, step, config)
    depth = choose_layers(family, stacks, step, config)
    skipped = (*sizes.skipped, *depth.skipped)
    if not (sizes.chosen or depth.kept):
        told = " ".join(f"{one.name}: {one.reason}" for one in skipped)
        detail = f"The shrink step would change no tensor. {told}"
        errors = [Detail(f"{pointer}/steps/0", "nothing_changed", detail)]
        raise Problem("nothing_changed", detail, errors=errors)
    names = _new_names(checkpoint, stacks, depth)
    groups, cuts = _cut(sizes, depth, names)
    edits = sizes.edits | depth.edits
    counts = {layers.path: len(layers.tensors) for layers in stacks}
    return Shrinkage(
        model=checkpoint,
        checkpoint=_left_of(checkpoint, names, cuts, edits),
        sources={new: checkpoint.tensors[name] for name, new in names.items()},
        cuts=cuts,
        groups=groups,
        layers={path: (counts[path], kept) for path, kept in depth.kept.items()},
        edits=edits,
        skipped=skipped,
    )


def _find_family(checkpoint: Checkpoint, pointer: str) -> tuple[Family, tuple[Layers, ...]]:
    config = checkpoint.config
    if config is None:
        detail = (
            "shrink edits config.json along with the tensors, and there is none. Upload the "
            "transformers folder with its config.json, or prune, which keeps all shapes."
        )
        raise _unsupported(detail, pointer)
    model_type = config.get("model_type")
    families = find_families(model_type)
    for family in families:
        found = [find_layers(checkpoint, family, stack) for stack in family.stacks]
        stacks = tuple(layers for layers in found if layers is not None)
        if stacks:
            return family, stacks
    why = "has its layers under names that are not known" if families else "is not known to shrink"
    detail = (
        f"The model_type {model_type!r} {why}. Offered are {', '.join(offered_types())}. prune "
        "takes any model, and keeps all shapes."
    )
    raise _unsupported(detail, pointer)


def _unsupported(detail: str, pointer: str) -> Problem:
    errors = [Detail(pointer, "shrink_unsupported", detail)]
    return Problem("shrink_unsupported", detail, errors=errors)


def _new_names(checkpoint: Checkpoint, stacks: tuple[Layers, ...], depth: Depth) -> dict[str, str]:
    """Give the names of the tensors that are kept, and what they are called then."""
    names = {name: name for name in checkpoint.tensors}
    for layers in stacks:
        if layers.path not in depth.kept:
            continue
        numbers = {number: new for new, number in enumerate(depth.kept[layers.path])}
        for number, tensors in enumerate(layers.tensors):
            for rest, tensor in tensors.items():
                if number in numbers:
                    names[tensor.name] = f"{layers.path}.{numbers[number]}.{rest}"
                else:
                    del names[tensor.name]
    return names


def _cut(
    sizes: Sizes, depth: Depth, names: Mapping[str, str]
) -> tuple[tuple[Group, ...], dict[str, Cut]]:
    groups: dict[str, Group] = {}
    cuts = {}
    for dimension, kept in sizes.chosen:
        path = dimension.layers.path
        for number in depth.kept.get(path, range(len(dimension.pieces))):
            pieces = dimension.pieces[number]
            block = f"{path}.{number}.{dimension.block}"
            name = f"{path}.*.{dimension.block}" if dimension.is_shared else block
            group = groups.setdefault(name, Group(name, dimension.unit, dimension.count, kept))
            for piece in pieces:
                cut = Cut(piece.tensor, piece.axis, group, piece.parts, block)
                cuts[names[piece.tensor.name]] = cut
    return tuple(groups.values()), cuts


def _left_of(
    checkpoint: Checkpoint,
    names: Mapping[str, str],
    cuts: Mapping[str, Cut],
    edits: Mapping[str, object],
) -> Checkpoint:
    """Give the checkpoint that is left; a file of which nothing is left is not in it."""
    shards = []
    for shard in checkpoint.shards:
        tensors: list[TensorSpec] = []
        for tensor in shard.header.tensors:
            if tensor.name not in names:
                continue
            name = names[tensor.name]
            shape = cuts[name].shape if name in cuts else tensor.shape
            start = tensors[-1].start + tensors[-1].nbytes if tensors else 0
            tensors.append(TensorSpec(name, tensor.dtype, shape, start))
        metadata = shard.header.metadata
        if tensors or not shard.header.tensors:
            start = len(encode_header(tensors, metadata))
            shards.append(Shard(shard.name, Header(tuple(tensors), metadata, start)))
    config = {**(checkpoint.config or {}), **edits}
    return Checkpoint(checkpoint.folder, tuple(shards), config, checkpoint.others)
