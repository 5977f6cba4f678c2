"""A recipe as people write it, turned into the plain values that are sent."""

import json
import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """Reads numbers as YAML 1.2 does: in YAML 1.1 a bare ``2:4`` is 124, in base 60."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - yaml's own class attribute
        first: [
            (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":int", ":float"))
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_STARTS = list("-+0123456789.")
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?\d+$"), _STARTS)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$"),
    _STARTS,
)


def read_recipe(text: str | bytes) -> dict[str, Any]:
    """Read a recipe in YAML or JSON; what it means is for the service to check.

    Args:
        text: The document.

    Returns:
        Its members, which JSON can carry.

    Raises:
        ValueError: The document cannot be read, or is no mapping of plain values.
    """
    try:
        members = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        json.dumps(members, allow_nan=False)
    except yaml.YAMLError as error:
        raise ValueError(f"is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"holds a value that JSON has no form for: {error}") from error
    match members:
        case dict():
            return members
    raise ValueError("is no mapping; a recipe begins with `steps:`")
