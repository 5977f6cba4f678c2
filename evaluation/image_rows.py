"""Images in a tar, each with the name of its folder for a label.

What is decoded is one image at a time, whatever the batch.
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from evaluation.limits import unreadable
from jobs.problems import Problem

_MOST_FILES = 1_000_000
_MOST_FILE_BYTES = 64 * 1024**2
_MOST_PIXELS = 64 * 1024**2
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")


@dataclass(frozen=True)
class ImageRows:
    """Some images, still encoded.

    Attributes:
        names: Their names in the archive.
        contents: The bytes of their files.
        labels: The names of their folders; None where they lie in none.
    """

    names: list[str]
    contents: list[bytes]
    labels: list[Any] | None

    def decoded(self) -> Iterator[Any]:
        """Give one image after the other.

        Yields:
            Images of PIL in RGB.

        Raises:
            Problem: `invalid_dataset`: one cannot be decoded; the detail names it.
        """
        from PIL import Image  # noqa: PLC0415 - most data sets are no images

        for name, content in zip(self.names, self.contents, strict=True):
            try:
                image = Image.open(BytesIO(content), formats=_FORMATS)
                _refuse_huge(name, image.width, image.height)
                decoded = image.convert("RGB")
            except Problem:
                raise
            except Exception as error:
                reason = " ".join(str(error).split())[:200]
                raise unreadable(f"{name!a} is no JPEG, PNG, WebP or BMP: {reason}.") from error
            yield decoded


def read_images(path: Path, batch: int, most: int) -> Iterator[ImageRows]:
    """Read a tar of images, some at a time.

    Args:
        path: The file.
        batch: How many images at a time.
        most: How many images at most. Archives have one class after the other, so these are taken
            in the order of a hash of their names: the same ones each time, and some of each class.

    Yields:
        The images.

    Raises:
        Problem: `invalid_dataset`, with the name.
    """
    try:
        with tarfile.open(path, "r:") as archive:
            members = sorted(_files(archive), key=_draw)[:most]
            folders = {PurePosixPath(member.name).parent.name for member in members}
            has_labels = "" not in folders
            if not has_labels and len(folders) > 1:
                raise unreadable("Some images lie in a folder, whose name is their label, not all.")
            for start in range(0, len(members), batch):
                part = members[start : start + batch]
                names = [member.name for member in part]
                labels = [PurePosixPath(name).parent.name for name in names]
                contents = [_content(archive, member) for member in part]
                yield ImageRows(names, contents, labels if has_labels else None)
    except tarfile.TarError as error:
        raise unreadable(f"It is no tar: {str(error)[:200]}.") from error


def _refuse_huge(name: str, width: int, height: int) -> None:
    if width * height > _MOST_PIXELS:
        raise unreadable(
            f"{name!a} has {width} by {height} pixels; {_MOST_PIXELS} together are allowed."
        )


def _files(archive: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for count, member in enumerate(archive):
        if count >= _MOST_FILES:
            raise unreadable(f"It has more than {_MOST_FILES} entries.")
        if member.isdir():
            continue
        if not member.isreg():
            raise unreadable(f"{member.name[:200]!a} is no plain file.")
        if member.size > _MOST_FILE_BYTES:
            raise unreadable(
                f"{member.name[:200]!a} has {member.size} bytes; {_MOST_FILE_BYTES} are allowed."
            )
        # What archivers of one system leave for themselves is no image.
        if not PurePosixPath(member.name).name.startswith("."):
            yield member


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    content = file.read() if file else b""
    if len(content) != member.size:
        raise unreadable(f"It ends inside {member.name[:200]!a}.")
    return content


def _draw(member: tarfile.TarInfo) -> bytes:
    return blake2b(member.name.encode(errors="surrogateescape"), digest_size=8).digest()
