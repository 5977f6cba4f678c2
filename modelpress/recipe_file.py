"""A recipe as people write it, turned into the plain values that are sent."""

import json
from typing import Any

import yaml


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
        members = yaml.safe_load(text)
        json.dumps(members, allow_nan=False)
    except yaml.YAMLError as error:
        raise ValueError(f"is neither YAML nor JSON: {' '.join(str(error).split())}") from error
    except (TypeError, ValueError) as error:
        raise ValueError(f"holds a value that JSON has no form for: {error}") from error
    match members:
        case dict():
            return members
    raise ValueError("is no mapping; a recipe begins with `steps:`")
