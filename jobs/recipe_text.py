"""Recipes as people write them: one YAML or JSON document, read without what YAML could do."""

import json
import re
from typing import Any

import yaml

from jobs.problems import Problem


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
