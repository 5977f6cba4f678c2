"""A state dict written by torch.save, turned into safetensors without unpickling it."""

import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from jobs.problems import Problem
from jobs.safetensors_header import DTYPE_BYTES, MAX_TENSORS, TensorSpec, encode_header
from service.formats import unsupported
from service.pickle_data import StoredTensor, read_pickle
from service.receive import CHUNK_BYTES
from service.zip_archive import check_member

#: How training loops call the state dict inside of a checkpoint.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_MAX_PICKLE_BYTES = 32 * 1024**2
#: What is told of the names that are left out.
_MOST_NAMES, _MOST_NAME_LENGTH = 100, 100
#: Tensors that share their bytes get their own, but no file grows by more than this.
_MOST_GROWTH, _FREE_BYTES = 4, 64 * 1024**2
_LOCAL_HEADER_BYTES, _LENGTHS_OFFSET = 30, 26
_HOW_TO_SAVE = "Save the state dict alone: torch.save(model.state_dict(), 'model.pt')."


def is_torch_save(archive: zipfile.ZipFile) -> bool:
    """Tell whether a zip is what torch.save writes."""
    return _root_of(archive) is not None


def convert(archive: zipfile.ZipFile, path: Path, target: Path, max_bytes: int) -> list[str]:
    """Write the tensors of a torch.save file as one safetensors file.

    Args:
        archive: The zip, its records checked.
        path: Where it lies.
        target: The file to write.
        max_bytes: The most bytes that it may have.

    Returns:
        What stands beside the tensors in there and is left out, by its names.

    Raises:
        Problem: `unsupported_format`: it is no state dict; `invalid_checkpoint`: it is damaged;
            `unsafe_archive`, `too_large`: it would become much larger, or larger than the limit.
    """
    entries = {member.filename: member for member in archive.infolist()}
    root = _root_of(archive) or ""
    _check_order(archive, root, entries)
    pickled = entries[root + "data.pkl"]
    check_member(pickled)
    if pickled.compress_type != zipfile.ZIP_STORED:
        raise Problem("invalid_checkpoint", "data.pkl is compressed, as torch.save never does it.")
    if pickled.file_size > _MAX_PICKLE_BYTES:
        raise Problem("invalid_checkpoint", f"data.pkl has over {_MAX_PICKLE_BYTES} bytes.")
    tensors, ignored = _find_tensors(read_pickle(archive.read(pickled)))
    specs = _lay_out(tensors)
    _refuse_growth(specs, path.stat().st_size, max_bytes)
    with path.open("rb") as source, target.open("wb", buffering=CHUNK_BYTES) as file:
        file.write(encode_header(specs, {"format": "pt"}))
        for spec in specs:
            start = _locate(source, spec, tensors[spec.name], entries, root)
            _copy(source, start, spec.nbytes, file)
    return [name[:_MOST_NAME_LENGTH] for name in ignored[:_MOST_NAMES]]


def _root_of(archive: zipfile.ZipFile) -> str | None:
    """Give the one folder that torch.save puts everything into, with its slash."""
    names = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(names) != 1 or names[0].count("/") != 1:
        return None
    return names[0].removesuffix("data.pkl")


def _check_order(
    archive: zipfile.ZipFile, root: str, entries: Mapping[str, zipfile.ZipInfo]
) -> None:
    order = entries.get(root + "byteorder")
    if order is not None:
        check_member(order)
    if order is not None and (order.file_size > 16 or archive.read(order) != b"little"):
        raise unsupported("a state dict whose numbers are not little-endian", _HOW_TO_SAVE)


def _find_tensors(value: Any) -> tuple[dict[str, StoredTensor], list[str]]:  # noqa: ANN401
    """Give the tensors by their names, and the names of everything else."""
    if not isinstance(value, dict):
        raise unsupported("a torch.save file that holds no state dict", _HOW_TO_SAVE)
    found, ignored = _split(value)
    for wrapper in _WRAPPERS:
        inner = value.get(wrapper)
        # First: beside it a training loop may keep tensors of its own.
        if isinstance(inner, dict) and _split(inner)[0]:
            found, left_out = _split(inner)
            ignored = [str(name) for name in value if name != wrapper]
            ignored += [f"{wrapper}.{name}" for name in left_out]
            break
    if not found:
        raise unsupported("a torch.save file that holds no tensor by its name", _HOW_TO_SAVE)
    if len(found) > MAX_TENSORS:
        raise Problem("invalid_checkpoint", f"It has over {MAX_TENSORS} tensors.")
    for name in found:
        if not isinstance(name, str):
            raise Problem("invalid_checkpoint", f"The name of a tensor, {name!r}, is no text.")
    return found, ignored


def _split(value: dict[Any, Any]) -> tuple[dict[str, StoredTensor], list[str]]:
    found = {name: value[name] for name in value if isinstance(value[name], StoredTensor)}
    return found, [str(name) for name in value if name not in found]


def _lay_out(tensors: Mapping[str, StoredTensor]) -> list[TensorSpec]:
    """Put the tensors one behind the other, those of larger values first, so all are aligned."""
    specs = [TensorSpec(name, t.dtype, t.shape, 0) for name, t in tensors.items()]
    specs.sort(key=lambda spec: -DTYPE_BYTES[spec.dtype])
    start = 0
    laid_out = []
    for spec in specs:
        _refuse_strides(spec.name, tensors[spec.name])
        laid_out.append(TensorSpec(spec.name, spec.dtype, spec.shape, start))
        start += spec.nbytes
    return laid_out


def _refuse_strides(name: str, tensor: StoredTensor) -> None:
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != expected and 0 not in tensor.shape:
            raise Problem(
                "invalid_checkpoint",
                f"Tensor {name[:80]!r} of shape {list(tensor.shape)} has the strides "
                f"{list(tensor.strides)}. Save it as tensor.contiguous().",
                extra={"tensor": name},
            )
        expected *= size


def _refuse_growth(specs: list[TensorSpec], file_bytes: int, max_bytes: int) -> None:
    total = sum(spec.nbytes for spec in specs)
    if total > max_bytes:
        raise Problem("too_large", f"The tensors have {total} bytes; {max_bytes} are allowed.")
    if total > _MOST_GROWTH * file_bytes + _FREE_BYTES:
        raise Problem(
            "unsafe_archive",
            f"The tensors have {total} bytes, the file has {file_bytes}: too many share theirs.",
        )


def _locate(
    source: IO[bytes],
    spec: TensorSpec,
    tensor: StoredTensor,
    entries: Mapping[str, zipfile.ZipInfo],
    root: str,
) -> int:
    """Give the place of a tensor's first byte in the zip."""
    member = entries.get(f"{root}data/{tensor.storage.key}")
    if member is None or member.compress_type != zipfile.ZIP_STORED:
        fault = "not in the file" if member is None else "compressed, as torch.save never does it"
        raise Problem(
            "invalid_checkpoint",
            f"Tensor {spec.name[:80]!r}: its bytes, data/{tensor.storage.key[:80]}, are {fault}.",
        )
    first = tensor.first * DTYPE_BYTES[spec.dtype]
    if spec.elements and first + spec.nbytes > member.file_size:
        raise Problem(
            "tensor_out_of_bounds",
            f"Tensor {spec.name[:80]!r} ends at byte {first + spec.nbytes} of its storage, "
            f"which holds {member.file_size}.",
        )
    source.seek(member.header_offset + _LENGTHS_OFFSET)
    name_bytes, extra_bytes = struct.unpack("<2H", source.read(4))
    return member.header_offset + _LOCAL_HEADER_BYTES + int(name_bytes) + int(extra_bytes) + first


def _copy(source: IO[bytes], start: int, nbytes: int, file: IO[bytes]) -> None:
    source.seek(start)
    while nbytes:
        piece = source.read(min(nbytes, CHUNK_BYTES))
        if not piece:
            raise Problem("invalid_checkpoint", "The file ended inside a tensor.")
        file.write(piece)
        nbytes -= len(piece)
