"""Which entries of an archive are stored, under which names, and which are refused."""

import re
from contextlib import suppress
from pathlib import Path

from jobs.problems import Problem

MAX_ENTRIES = 4096
#: Making a file costs more than reading its entry, and no checkpoint has as many.
_MAX_FILES = 1024
_MAX_PATH_BYTES = 512
_MAX_DEPTH = 8

_KEPT_SUFFIXES = (".safetensors", ".json", ".txt", ".model", ".jinja", ".md")
_KEPT_NAMES = re.compile(r"(LICENSE|NOTICE).*")
_RESERVED_SUFFIXES = (".safetensors", ".json", ".bin")
#: Files that torch.save may have written.
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


class Entries:
    """The bookkeeping of one archive while it is unpacked.

    Args:
        folder: Where its files go; exists and is empty.
        max_bytes: The most bytes that all stored files may have.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        #: Paths of the files that are not stored.
        self.ignored: list[str] = []
        self._folder = folder
        self.max_bytes = max_bytes
        self._count = 0
        self._bytes = 0
        self._kept: list[str] = []
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def add_folder(self, name: str) -> None:
        """Check a folder's entry. Folders come into being with their files.

        Args:
            name: As it stands in the archive.

        Raises:
            Problem: `unsafe_archive`.
        """
        path = self._clean(name)
        if path in self._files:
            raise unsafe(name, "it is a file and a folder")

    def add_file(self, name: str, nbytes: int) -> Path | None:
        """Check a file's entry.

        Args:
            name: As it stands in the archive.
            nbytes: Its size, unpacked.

        Returns:
            Where to write it, its folder made; None where it is not stored.

        Raises:
            Problem: `unsafe_archive`, or `too_large`.
        """
        path = self._clean(name)
        parents = [path[:i] for i, character in enumerate(path) if character == "/"]
        if not path or name.endswith("/"):
            raise unsafe(name, "a file needs a name")
        if path in self._files:
            raise unsafe(name, "it stands in the archive twice")
        if path in self._folders or not self._files.isdisjoint(parents):
            raise unsafe(name, "it is a file and a folder")
        if any(parent.endswith(_RESERVED_SUFFIXES) for parent in parents):
            raise unsafe(name, "a folder has the name of a file that a checkpoint may have")
        self._files.add(path)
        self._folders.update(parents)
        if not _is_kept(path):
            self.ignored.append(path)
            return None
        return self._keep(path, nbytes)

    def finish(self) -> bool:
        """Lift the files out of the one folder that holds them all, if there is one.

        Returns:
            Whether the weights are still what torch.save wrote. Where there are safetensors, such
            files are removed.
        """
        has_weights = any(path.endswith(".safetensors") for path in self._kept)
        pickles = [path for path in self._kept if path.endswith(PICKLE_SUFFIXES)]
        if has_weights:
            for path in pickles:
                (self._folder / path).unlink()
                self._kept.remove(path)
                self._remove_empty((self._folder / path).parent)
            self.ignored += pickles
        tops = {path.partition("/")[0] for path in self._kept}
        if len(tops) == 1 and all("/" in path for path in self._kept):
            lifted = self._folder.with_name("lifted")
            (self._folder / tops.pop()).rename(lifted)
            self._folder.rmdir()
            lifted.rename(self._folder)
        return bool(pickles) and not has_weights

    def _remove_empty(self, folder: Path) -> None:
        with suppress(OSError):
            while folder != self._folder:
                folder.rmdir()
                folder = folder.parent

    def _keep(self, path: str, nbytes: int) -> Path:
        self._bytes += nbytes
        if self._bytes > self.max_bytes:
            raise Problem(
                "too_large", f"The files in the archive have more than {self.max_bytes} bytes."
            )
        if len(self._kept) == _MAX_FILES:
            raise Problem(
                "unsafe_archive",
                f"More than {_MAX_FILES} files of the archive would be stored. A checkpoint has a "
                "few dozen; leave out what does not belong to it.",
            )
        self._kept.append(path)
        target = self._folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _clean(self, name: str) -> str:
        self._count += 1
        if self._count > MAX_ENTRIES:
            raise Problem("unsafe_archive", f"The archive has more than {MAX_ENTRIES} entries.")
        if not name.isprintable() or "\\" in name:
            raise unsafe(name, "its name holds a control character, a backslash or broken UTF-8")
        if name.startswith("/") or re.match(r"[A-Za-z]:", name):
            raise unsafe(name, "its path is absolute")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts:
            raise unsafe(name, "its path leads out of the archive")
        path = "/".join(parts)
        if len(path.encode()) > _MAX_PATH_BYTES or len(parts) > _MAX_DEPTH:
            raise unsafe(name, f"its path is over {_MAX_PATH_BYTES} bytes or {_MAX_DEPTH} levels")
        if any(len(part.encode()) > 255 for part in parts):
            raise unsafe(name, "a part of its path is over 255 bytes")
        return path


def unsafe(name: str, reason: str) -> Problem:
    """Make the problem for an entry that is not allowed."""
    return Problem("unsafe_archive", f"Entry {name[:100]!a}: {reason}.")


def _is_kept(path: str) -> bool:
    name = path.rpartition("/")[2]
    # macOS puts a hidden ._name beside every file.
    if name.startswith("."):
        return False
    return (
        name.endswith(_KEPT_SUFFIXES + PICKLE_SUFFIXES) or _KEPT_NAMES.fullmatch(name) is not None
    )
