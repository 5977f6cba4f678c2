"""The table of known architectures: what `engine.inspection` would say, without asking a model.

`engine.architecture_table` makes the table from the installed transformers. It holds what can
be told from names: a checkpoint fits an entry only if the names of its weights are exactly those of
the entry's model, so a config that changes the model in a way the table does not know does not fit.
"""

import json
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from jobs.checkpoint import Checkpoint
from planning.module_kinds import ModuleKinds
from planning.naming import is_weight, kind_by_shape, module_of

Value = TypeVar("Value")

_TABLE = Path(__file__).with_suffix(".jsonl")
_MAX_LAYERS = 2048


@dataclass(frozen=True)
class Architecture:
    """One class of models.

    In names, ``#`` stands for the number of a layer, and ``#0`` for that of the first layer alone.

    Attributes:
        model_types: The config's model_type, and those of members that are configs too, by path; a
            dot leads into a member that is an object.
        prefix: As in `ModuleKinds`.
        head: As in `ModuleKinds`.
        stacks: By the name of a list of layers, the path of the member that counts them.
        kinds: As in `ModuleKinds`, by name or pattern, in the model's order.
        parameters: Weights of two or more dimensions whose names do not end in ``.weight``.
        named_weights: As in `ModuleKinds`, by name or pattern.
        tie_key: The path of the member that decides between the values of `tied`; None where
            nothing does.
        is_tied_by_default: What a config without that member means.
        tied: As in `ModuleKinds`: first where the member is false, then where it is true.
    """

    model_types: dict[str, str]
    prefix: str
    head: str | None
    stacks: dict[str, str]
    kinds: dict[str, str]
    parameters: list[str]
    named_weights: list[str]
    tie_key: str | None
    is_tied_by_default: bool
    tied: list[list[list[str]]]

    def module_kinds(self, config: dict[str, Any]) -> ModuleKinds | None:
        """Say what a config's model is made of; None where the config does not tell."""
        counts = self._counts(config)
        is_tied = self.is_tied_by_default
        if self.tie_key is not None:
            is_tied = _find(config, self.tie_key, is_tied)
        is_meant = all(_find(config, path) == name for path, name in self.model_types.items())
        if counts is None or not is_meant or not isinstance(is_tied, bool):
            return None
        return ModuleKinds(
            kinds=_expand(self.kinds, counts),
            tied=self.tied[is_tied],
            head=self.head,
            prefix=self.prefix,
            named_weights=frozenset(_expand(dict.fromkeys(self.named_weights), counts)),
        )

    def weights(self, config: dict[str, Any]) -> set[str]:
        """Give the names of the model's weights of two or more dimensions, tied ones included."""
        counts = self._counts(config) or {}
        parameters = _expand(dict.fromkeys(self.parameters), counts)
        return {*parameters, *(f"{module}.weight" for module in _expand(self.kinds, counts))}

    def _counts(self, config: dict[str, Any]) -> dict[str, int] | None:
        counts = {stack: _find(config, key) for stack, key in self.stacks.items()}
        is_known = all(type(n) is int and 0 <= n <= _MAX_LAYERS for n in counts.values())
        return counts if is_known else None


def known_kinds(checkpoint: Checkpoint) -> ModuleKinds | None:
    """Say what the table says about a checkpoint's modules.

    Args:
        checkpoint: The model.

    Returns:
        What its own code would say; None where it has no config, or one that the table does not
        hold, or where the names of its weights are others than the table expects of its config.
    """
    config = checkpoint.config or {}
    architectures = config.get("architectures")
    name = architectures[0] if isinstance(architectures, list) and architectures else None
    known = find_architecture(name) if isinstance(name, str) else None
    kinds = known.module_kinds(config) if known else None
    if known is None or kinds is None or not _fits(checkpoint, known.weights(config), kinds):
        return None
    return kinds


def guess_kinds(checkpoint: Checkpoint) -> ModuleKinds:
    """Guess a checkpoint's modules by names and shapes, as its model's own code might say."""
    weights = {module_of(t.name): t for t in checkpoint.tensors.values() if is_weight(t)}
    return ModuleKinds({m: kind_by_shape(t, m) for m, t in weights.items() if m is not None})


def table_version() -> str:
    """Give the version of transformers that the table was made from."""
    with _TABLE.open("rb") as lines:
        return str(json.loads(next(lines))["transformers"])


def find_architecture(name: str) -> Architecture | None:
    """Look a class of models up; None where the table does not hold it."""
    # Only the wanted line is parsed: the table would take more memory than a job may.
    start = f'{{"name": {json.dumps(name)}, '.encode()
    with _TABLE.open("rb") as lines:
        found = next((line for line in lines if line.startswith(start)), None)
    if found is None:
        return None
    entry = json.loads(found)
    return Architecture(**{key: value for key, value in entry.items() if key != "name"})


def _find(config: dict[str, Any], path: str, default: Any = None) -> Any:  # noqa: ANN401 - JSON
    """Give a config's member; a dot leads into a member that is an object."""
    *parents, last = path.split(".")
    for parent in parents:
        config = config.get(parent, {})
        if not isinstance(config, dict):
            return None
    return config.get(last, default)


def _fits(checkpoint: Checkpoint, expected: set[str], kinds: ModuleKinds) -> bool:
    found = {
        _own_name(t.name, expected, kinds) for t in checkpoint.tensors.values() if is_weight(t)
    }
    # Of names that are one tensor, one is enough.
    shared = {name for group in kinds.tied if not found.isdisjoint(group) for name in group}
    return found <= expected and expected - found <= shared


def _own_name(name: str, expected: set[str], kinds: ModuleKinds) -> str:
    return next((own for own in kinds.spellings(name) if own in expected), name)


def _expand(patterns: dict[str, Value], counts: dict[str, int]) -> dict[str, Value]:
    """Write out every layer's names, in the order in which a model has them."""
    expanded: dict[str, Value] = {}
    for stack, group in groupby(patterns, key=_stack_of):
        names = list(group)
        for layer in range(counts[stack] if stack else 1):
            for name in names:
                if "#0" not in name or layer == 0:
                    expanded[name.replace("#0", "0").replace("#", str(layer))] = patterns[name]
    return expanded


def _stack_of(pattern: str) -> str | None:
    stack, mark, _ = pattern.partition(".#")
    return stack if mark else None
