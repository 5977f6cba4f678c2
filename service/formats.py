"""What an upload is, told from its first bytes and never from its name."""

import tarfile
from typing import Literal

from jobs.problems import Problem

#: How many first bytes `sniff` wants to see; a tar's mark lies at 257.
SNIFF_BYTES = 512

Container = Literal["safetensors", "tar", "zip"]

HOW_TO_CONVERT = (
    "Convert a state dict with safetensors.torch.save_file(state_dict, 'model.safetensors'), or a "
    "transformers model with model.save_pretrained(folder), and upload that."
)
_UNPACK = "Send the tar uncompressed: weights hardly shrink, and it is read while it arrives."

_REFUSED: tuple[tuple[bytes, str, str], ...] = (
    (b"GGUF", "a GGUF file", HOW_TO_CONVERT),
    (b"lmgg", "a GGML file", HOW_TO_CONVERT),
    (b"tjgg", "a GGML file", HOW_TO_CONVERT),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file, such as Keras writes", HOW_TO_CONVERT),
    (b"\x93NUMPY", "a NumPy array", HOW_TO_CONVERT),
    (b"\x1f\x8b", "compressed with gzip", _UNPACK),
    (b"\xfd7zXZ\x00", "compressed with xz", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", _UNPACK),
    (b"BZh", "compressed with bzip2", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", "Send a tar or a zip instead."),
    (b"Rar!", "a RAR archive", "Send a tar or a zip instead."),
    (b"version https://git-lfs", "a Git LFS pointer, not the file", "Run `git lfs pull` first."),
    (b"<", "HTML or XML", "Was a download page saved instead of the file?"),
)


def sniff(start: bytes) -> Container:
    """Tell the container of an upload.

    Args:
        start: Its first `SNIFF_BYTES` bytes, or all of a shorter one.

    Returns:
        The container, for its own reader to check.

    Raises:
        Problem: `empty_upload`, or `unsupported_format` with how to convert it.
    """
    if not start:
        raise Problem("empty_upload", "The upload has no bytes.")
    if _starts_with_header(start) and start[4:8] == bytes(4):
        return "safetensors"
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if _is_tar(start):
        return "tar"
    _refuse_known(start)
    # A header that lies about its length is still a header, and gets the more precise problem.
    if _starts_with_header(start) or (len(start) > 8 and start[4:8] == bytes(4) != start[:4]):
        return "safetensors"
    raise unsupported("in no format that this service knows", HOW_TO_CONVERT)


def unsupported(what: str, advice: str) -> Problem:
    """Make the problem for a format that is not accepted.

    Args:
        what: What the upload is.
        advice: What to do instead.

    Returns:
        The problem, which lists what is accepted.
    """
    return Problem(
        "unsupported_format",
        f"The upload is {what}. Accepted are .safetensors files, .tar or .zip archives of them, "
        f"state dicts written by torch.save, and .pt2 programs of torch.export.save. {advice}",
    )


def refuse_foreign_zip(names: list[str]) -> None:
    """Refuse zips that are a format of their own.

    Args:
        names: Of the zip's entries.

    Raises:
        Problem: `unsupported_format`: TorchScript, an old torch.export or npz.
    """
    ends = {name.rsplit("/", 1)[-1] for name in names}
    if "constants.pkl" in ends:
        raise unsupported("a TorchScript program", HOW_TO_CONVERT)
    if "serialized_exported_program.json" in ends:
        raise unsupported(
            "a torch.export program as torch wrote it before 2.8",
            "Load it with a newer torch, and save it again with torch.export.save.",
        )
    if names and all(name.endswith(".npy") for name in names):
        raise unsupported("a NumPy .npz archive", HOW_TO_CONVERT)


def _refuse_known(start: bytes) -> None:
    if start[0] == 0x80 and len(start) > 1 and start[1] in range(2, 6):
        raise unsupported("a Python pickle, such as torch.save wrote before 1.6", HOW_TO_CONVERT)
    # An ONNX file is a protobuf: field 1 is its IR version, one of the next is text or a graph.
    if start[0] == 0x08 and len(start) > 2 and 0 < start[1] < 32 and start[2] in b"\x12\x1a\x3a":
        raise unsupported("an ONNX file", HOW_TO_CONVERT)
    if start[4:8] == b"TFL3":
        raise unsupported("a TensorFlow Lite file", HOW_TO_CONVERT)
    for magic, what, advice in _REFUSED:
        if start.lstrip().startswith(magic):
            raise unsupported(what, advice)


def _starts_with_header(start: bytes) -> bool:
    return start[8:9] == b"{"


def _is_tar(start: bytes) -> bool:
    if len(start) < tarfile.BLOCKSIZE:
        return False
    try:
        tarfile.TarInfo.frombuf(start[: tarfile.BLOCKSIZE], "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return start[257:262] == b"ustar"
    return True
