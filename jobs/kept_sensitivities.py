"""Sensitivities on the disk: a file in the folder of the model that they are about.

So they go when the model goes, and count for what its tenant stores.
"""

from pathlib import Path

from pydantic import ValidationError

from jobs.blobs import BlobStore
from jobs.durable_files import read_json, write_json
from jobs.problems import Problem
from jobs.recipe import ENGINE_VERSION
from jobs.sensitivities import Sensitivities

NAME = "sensitivities.json"


def keep_sensitivities(blobs: BlobStore, model: str, found: Sensitivities) -> None:
    """Keep what was measured of a model, durably; what was kept before is replaced.

    Args:
        blobs: Where the model is.
        model: Its id.
        found: What was measured.

    Raises:
        Problem: `model_not_found`: it was removed meanwhile.
    """
    try:
        write_json(_path(blobs, model), found.model_dump(mode="json"))
    except FileNotFoundError as error:
        raise Problem("model_not_found", f"Model {model} is no longer stored.") from error


def read_sensitivities(blobs: BlobStore, model: str) -> Sensitivities | None:
    """Give what was measured of a model.

    Args:
        blobs: Where the model is.
        model: Its id.

    Returns:
        That; None where nothing was, where another version of the engine did it, or where the file
        is damaged: measuring again costs little.
    """
    try:
        members = read_json(_path(blobs, model))
        found = Sensitivities.model_validate(members) if members else None
    except (ValidationError, ValueError):
        return None
    return found if found and found.engine_version == ENGINE_VERSION else None


def _path(blobs: BlobStore, model: str) -> Path:
    return blobs.files("models", model.removeprefix("mdl_")).with_name(NAME)
