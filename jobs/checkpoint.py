"""A checkpoint on disk: its shards, their headers and its config, checked against one another.

Three kinds come in: one ``.safetensors`` file, a folder of shards with an index, and a transformers
folder (either of those with a ``config.json``).
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from jobs.problems import Problem
from jobs.safetensors_header import Header, TensorSpec, read_header

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_JSON_BYTES = 64 * 1024**2

CheckpointFormat = Literal["safetensors", "sharded-safetensors", "transformers"]


@dataclass(frozen=True)
class Shard:
    """One safetensors file of a checkpoint.

    Attributes:
        name: The file's name inside the folder.
        header: Its checked header.
    """

    name: str
    header: Header


@dataclass(frozen=True)
class Checkpoint:
    """A checked checkpoint.

    Attributes:
        folder: Where its files lie.
        shards: Its safetensors files, in the order of their names.
        config: The members of ``config.json``, or None where there is none.
        others: Size of every other file, by its path relative to the folder.
    """

    folder: Path
    shards: tuple[Shard, ...]
    config: dict[str, Any] | None
    others: Mapping[str, int] = field(default_factory=dict)

    @property
    def format(self) -> CheckpointFormat:
        """Which of the three kinds this is."""
        if self.config is not None:
            return "transformers"
        return "safetensors" if len(self.shards) == 1 else "sharded-safetensors"

    @cached_property
    def tensors(self) -> dict[str, TensorSpec]:
        """Every tensor by its name."""
        return {tensor.name: tensor for _, tensor in self.walk()}

    def walk(self) -> Iterator[tuple[Shard, TensorSpec]]:
        """Yield every tensor in the order of the files and of its bytes."""
        for shard in self.shards:
            for tensor in shard.header.tensors:
                yield shard, tensor

    def facts(self) -> dict[str, Any]:
        """Give what the headers tell: format, tensors, parameters, bytes, parameters by dtype."""
        parameters: Counter[str] = Counter()
        dtype_bytes: Counter[str] = Counter()
        for _, tensor in self.walk():
            parameters[tensor.dtype] += tensor.elements
            dtype_bytes[tensor.dtype] += tensor.nbytes
        return {
            "format": self.format,
            "architecture": _architecture(self.config),
            "files": [shard.name for shard in self.shards],
            "tensors": len(self.tensors),
            "parameters": parameters.total(),
            "tensor_bytes": dtype_bytes.total(),
            "parameters_by_dtype": dict(sorted(parameters.items())),
            "bytes_by_dtype": dict(sorted(dtype_bytes.items())),
        }


def open_checkpoint(folder: Path) -> Checkpoint:
    """Read the headers of a folder's safetensors files and check that they make one checkpoint.

    Args:
        folder: A folder with one or more ``.safetensors`` files at its top, and perhaps an index
            and a config.

    Returns:
        The checkpoint.

    Raises:
        Problem: A header is not valid, a tensor stands in two shards, the index and the shards
            disagree, or a JSON file is damaged.
    """
    paths = sorted(folder.glob("*.safetensors"))
    checkpoint = assemble(
        tuple(Shard(path.name, _read(path)) for path in paths),
        read_json(folder / "config.json", "invalid_config"),
        _other_files(folder, {path.name for path in paths}),
        folder,
    )
    index = read_json(folder / INDEX_NAME, "invalid_checkpoint")
    if index is not None:
        _check_index(index, checkpoint.shards)
    elif len(paths) > 1:
        raise Problem(
            "invalid_checkpoint",
            f"There are {len(paths)} .safetensors files but no {INDEX_NAME}, which says that they "
            "belong together.",
        )
    return checkpoint


def assemble(
    shards: tuple[Shard, ...],
    config: dict[str, Any] | None,
    others: Mapping[str, int],
    folder: Path,
) -> Checkpoint:
    """Check that shards make one checkpoint.

    Args:
        shards: The safetensors files, in the order of their names.
        config: The members of ``config.json``, or None where there is none.
        others: Size of every other file.
        folder: Where all of them lie.

    Returns:
        The checkpoint.

    Raises:
        Problem: There is no shard or no tensor, or a tensor stands in two shards.
    """
    if not shards:
        raise Problem(
            "invalid_checkpoint",
            "There is no .safetensors file. Put the shards at the top of the archive, or convert a "
            "state dict with safetensors.torch.save_file.",
        )
    _refuse_shared_names(shards)
    if not any(shard.header.tensors for shard in shards):
        raise Problem("invalid_checkpoint", "The checkpoint holds no tensor.")
    return Checkpoint(folder, shards, config, others)


def _other_files(folder: Path, names: set[str]) -> dict[str, int]:
    files = ((path, str(path.relative_to(folder))) for path in sorted(folder.rglob("*")))
    return {
        name: path.stat().st_size
        for path, name in files
        if name not in names and path.is_file() and not path.is_symlink()
    }


def _read(path: Path) -> Header:
    try:
        return read_header(path)
    except Problem as problem:
        raise Problem(
            problem.code, f"{path.name}: {problem.detail}", errors=problem.errors
        ) from problem


def _refuse_shared_names(shards: tuple[Shard, ...]) -> None:
    home: dict[str, str] = {}
    for shard in shards:
        for tensor in shard.header.tensors:
            if tensor.name in home:
                raise Problem(
                    "duplicate_tensor",
                    f"Tensor {tensor.name!r} stands in {home[tensor.name]} and in {shard.name}.",
                )
            home[tensor.name] = shard.name


def read_json(path: Path, code: str) -> dict[str, Any] | None:
    """Read a JSON object of a checkpoint.

    Args:
        path: The file.
        code: The problem's code where it cannot be read.

    Returns:
        Its members, or None where there is no such file.

    Raises:
        Problem: It is larger than `MAX_JSON_BYTES`, or no JSON object.
    """
    if not path.exists():
        return None
    if path.stat().st_size > MAX_JSON_BYTES:
        raise Problem(code, f"{path.name} is larger than {MAX_JSON_BYTES} bytes.")
    try:
        members = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Problem(code, f"{path.name} is not JSON: {error}.") from error
    if not isinstance(members, dict):
        raise Problem(code, f"{path.name} is not a JSON object.")
    return members


def _check_index(index: dict[str, Any], shards: tuple[Shard, ...]) -> None:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise Problem("invalid_checkpoint", f"{INDEX_NAME} has no weight_map object.")
    found = {tensor.name: shard.name for shard in shards for tensor in shard.header.tensors}
    for name, home in weight_map.items():
        if name not in found:
            raise Problem(
                "invalid_checkpoint", f"{INDEX_NAME} names tensor {name!r}, which is in no shard."
            )
        if found[name] != home:
            raise Problem(
                "invalid_checkpoint",
                f"{INDEX_NAME} puts tensor {name!r} into {home!r}, but it is in {found[name]!r}.",
            )
    for name, home in found.items():
        if name not in weight_map:
            raise Problem(
                "invalid_checkpoint",
                f"{home} holds tensor {name!r}, which {INDEX_NAME} leaves out.",
            )


def _architecture(config: dict[str, Any] | None) -> str | None:
    names = (config or {}).get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return names[0]
    return None
