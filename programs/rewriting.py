"""A program written anew with other bytes in some of its entries, and all others as they were."""

from collections.abc import Callable
from pathlib import Path

from jobs.program import Program
from jobs.program_archive import FIXED, ArchiveWriter, write_archive
from programs.values import ProgramFile


def rewrite(
    program: Program, path: Path, change: Callable[[str], bytes | memoryview | None]
) -> None:
    """Write a program anew.

    Args:
        program: The program.
        path: The file to make, another one than the program's.
        change: Gives the new bytes of an entry, as many as it has; None leaves it as it is.
    """
    file = ProgramFile(program)

    def fill(writer: ArchiveWriter) -> None:
        for entry, (_, nbytes) in program.spans.items():
            if entry in FIXED:
                continue
            changed = change(entry)
            writer.add(entry, [file.entry(entry).data if changed is None else changed], nbytes)

    write_archive(path, fill)
