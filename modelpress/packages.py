"""What an upload sends: a file as it is, or a folder as a tar that is made while it is sent.

The same folder always makes the same bytes, whoever packs it and wherever, because the service
addresses models by their bytes: names are sorted, and owner, time and permissions left out.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import blake3

from modelpress.errors import UnusableUpload

CHUNK_BYTES = 4 * 1024**2

# What transformers and its kin read. All else stays at home: code, which the service never runs,
# pickles beside safetensors, and whatever else lies beside a model, such as optimizer states.
CHECKPOINT_FILES = (
    "*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*", "NOTICE*",
)  # fmt: skip
NEVER_SENT = (".*", "*.py")
#: What holds the weights where there are no safetensors; the service reads them as data.
STATE_DICTS = "pytorch_model*.bin"

HOW_TO_CONVERT = (
    "Convert a state dict with safetensors.torch.save_file(state_dict, 'model.safetensors'), or a "
    "transformers model with model.save_pretrained(folder)."
)


@dataclass(frozen=True)
class _Content:
    """A file's place in the stream.

    Attributes:
        path: The file.
        nbytes: Its size when the package was made.
    """

    path: Path
    nbytes: int


@dataclass(frozen=True)
class Package:
    """A sequence of bytes that can be read again and again.

    Attributes:
        name: What it was made of, for messages.
        segments: Literal bytes and files, in order.
    """

    name: str
    segments: tuple[bytes | _Content, ...]

    @property
    def nbytes(self) -> int:
        """How many bytes `chunks` yields."""
        return sum(s.nbytes if isinstance(s, _Content) else len(s) for s in self.segments)

    def chunks(self) -> Iterator[bytes]:
        """Read the package from its start.

        Yields:
            `nbytes` bytes in pieces of at most 4 MiB.

        Raises:
            UnusableUpload: A file changed its size since the package was made.
        """
        for segment in self.segments:
            if isinstance(segment, _Content):
                yield from _read(segment)
            elif segment:
                yield segment

    def digest(self) -> str:
        """Read the whole package and give its blake3 in hex."""
        hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
        for chunk in self.chunks():
            hasher.update(chunk)
        return hasher.hexdigest()


def package_model(path: Path) -> Package:
    """Prepare a model for its upload, without reading its tensors.

    Args:
        path: A ``.safetensors`` or ``.pt`` file, a ``.tar`` or ``.zip`` of a folder, or the folder,
            of which only the files at its top that belong to a checkpoint are taken.

    Returns:
        The package. For a folder it is a tar, equal for equal names and contents.

    Raises:
        UnusableUpload: There is nothing at the path, or the folder holds neither safetensors nor
            ``pytorch_model*.bin``.
    """
    if not path.is_dir():
        return package_file(path)
    files = checkpoint_files(path)
    if not any(file.suffix == ".safetensors" for file in files):
        state_dicts = [file for file in path.glob(STATE_DICTS) if file.is_file()]
        if not state_dicts:
            raise UnusableUpload(
                f"{path} holds no .safetensors file and no {STATE_DICTS}. {HOW_TO_CONVERT}"
            )
        files = sorted([*files, *state_dicts])
    return _tar(str(path), files)


def package_file(path: Path) -> Package:
    """Prepare one file for its upload as it is.

    Args:
        path: The file.

    Returns:
        The package, which is the file's bytes.

    Raises:
        UnusableUpload: There is no file at the path, or it is empty.
    """
    if not path.is_file():
        raise UnusableUpload(f"{path} is no file." if path.exists() else f"{path} does not exist.")
    nbytes = path.stat().st_size
    if nbytes == 0:
        raise UnusableUpload(f"{path} is empty.")
    return Package(str(path), (_Content(path, nbytes),))


def checkpoint_files(folder: Path) -> list[Path]:
    """List the files at a folder's top that belong to a checkpoint, by name."""
    return [entry for entry in sorted(folder.iterdir()) if _belongs(entry.name) and entry.is_file()]


def _belongs(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in CHECKPOINT_FILES) and not any(
        fnmatchcase(name, pattern) for pattern in NEVER_SENT
    )


def _tar(name: str, files: list[Path]) -> Package:
    segments: list[bytes | _Content] = []
    for file in files:
        entry = tarfile.TarInfo(file.name)
        entry.size = file.stat().st_size
        entry.mode = 0o644
        segments.append(entry.tobuf(tarfile.GNU_FORMAT, "utf-8"))
        segments.append(_Content(file, entry.size))
        segments.append(bytes(-entry.size % tarfile.BLOCKSIZE))
    segments.append(bytes(2 * tarfile.BLOCKSIZE))
    package = Package(name, tuple(segments))
    return Package(name, (*segments, bytes(-package.nbytes % tarfile.RECORDSIZE)))


def _read(content: _Content) -> Iterator[bytes]:
    left = content.nbytes
    with content.path.open("rb") as file:
        while left and (chunk := file.read(min(CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk
        if left or file.read(1):
            raise UnusableUpload(f"{content.path} changed its size while it was being read.")
