"""The headers of a model on this machine: all that a plan needs to know of it."""

import json
from pathlib import Path
from typing import Any

from modelpress.errors import UnusableUpload
from modelpress.packages import checkpoint_files

_MAX_HEADER_BYTES = 16 * 1024**2


def read_headers(path: Path) -> dict[str, Any]:
    """Read what a plan is asked with: headers, the config and the sizes of other files.

    Args:
        path: A ``.safetensors`` file, or a folder with such files.

    Returns:
        The members ``headers``, ``config`` and ``files`` of the request. No weight is read.

    Raises:
        UnusableUpload: There is no such model at the path, or it is an archive.
    """
    files = checkpoint_files(path) if path.is_dir() else [path]
    weights = [file for file in files if file.suffix == ".safetensors"]
    if not weights:
        raise UnusableUpload(
            f"{path} is neither a .safetensors file nor a folder with one. To plan an archive, "
            "unpack it or upload it first."
        )
    # One file is uploaded under a name of the service's choosing, and so is the artifact's.
    single = not path.is_dir()
    headers = {"model.safetensors" if single else f.name: _read_header(f) for f in weights}
    others = {file.name: file.stat().st_size for file in files if file not in weights}
    config = path / "config.json"
    return {
        "headers": headers,
        "config": _read_json(config) if "config.json" in others else None,
        "files": others,
    }


def _read_header(path: Path) -> Any:  # noqa: ANN401 - for the service to judge
    if not path.is_file():
        raise UnusableUpload(f"{path} does not exist.")
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(length) if length <= _MAX_HEADER_BYTES else b""
    return _parse(raw, f"{path} does not begin with a safetensors header")


def _read_json(path: Path) -> Any:  # noqa: ANN401
    return _parse(path.read_bytes(), f"{path} is not JSON")


def _parse(raw: bytes, fault: str) -> Any:  # noqa: ANN401
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise UnusableUpload(f"{fault}: {error}.") from error
