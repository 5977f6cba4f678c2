"""An uploaded .pt2, written again with nothing in it but what was looked at.

Left out are the sample inputs, which are a pickle, and files beside the program. Refused is what
torch.export.load would run: compiled code, objects, pickled tensors.
"""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobs.problems import Problem
from jobs.program import Program, assemble_program
from jobs.program_archive import (
    CONSTANTS_CONFIG,
    FIXED,
    GRAPH,
    PAYLOAD,
    SAMPLE_INPUTS,
    WEIGHTS_CONFIG,
    ArchiveWriter,
    write_archive,
)
from jobs.program_graph import MAX_GRAPH_BYTES, canonical, read_graph
from jobs.program_tensors import ProgramTensor, read_config, read_tensors
from service.receive import CHUNK_BYTES
from service.zip_archive import check_member

_CONFIGS = (WEIGHTS_CONFIG, CONSTANTS_CONFIG)
_DROPPED = re.compile(r"extra/.*|\.data/serialization_id|version")
_MODEL = re.compile(r"models/(.+)\.json")
_HOW = "Save one program with torch.export.save(program, 'model.pt2')."


def is_exported(archive: zipfile.ZipFile) -> bool:
    """Tell whether a zip is what torch.export.save writes."""
    return any(
        name.count("/") == 1 and name.endswith("/archive_format") for name in _names(archive)
    )


def convert(
    archive: zipfile.ZipFile, target: Path, max_bytes: int
) -> tuple[list[str], dict[str, Any]]:
    """Write the program of a .pt2 as this project keeps it.

    Args:
        archive: The zip, its records checked.
        target: The file to write.
        max_bytes: The most bytes that it may have.

    Returns:
        Which of its files are left out, and what the program tells of itself.

    Raises:
        Problem: `unsafe_program`: it holds code, objects or pickles; `invalid_program`,
            `unsupported_operator`, `invalid_expression`, `tensor_out_of_bounds`: it is no program
            that is accepted; `too_large`.
    """
    entries, ignored = _sort(archive)
    if sum(member.file_size for member in entries.values()) > max_bytes:
        raise Problem("too_large", f"The program's files have more than {max_bytes} bytes.")
    document = read_graph(_read(archive, entries, GRAPH))
    spans = {name: (0, member.file_size) for name, member in entries.items()}
    tensors: dict[str, ProgramTensor] = {}
    texts = {}
    for name in _CONFIGS:
        config = read_config(_read(archive, entries, name), name)
        tensors |= read_tensors(config, name.rpartition("/")[0] + "/", spans)
        texts[name] = canonical(config)
    program = assemble_program(Program(target, document, tensors, spans))
    texts[GRAPH] = canonical(document)

    def fill(writer: ArchiveWriter) -> None:
        for name in sorted(filter(PAYLOAD.fullmatch, entries), key=_number):
            writer.add(name, _pieces(archive, entries[name]), entries[name].file_size)
        for name, raw in texts.items():
            writer.add(name, [raw], len(raw))

    write_archive(target, fill)
    return ignored, program.facts()


def _names(archive: zipfile.ZipFile) -> list[str]:
    return [member.filename for member in archive.infolist()]


def _sort(archive: zipfile.ZipFile) -> tuple[dict[str, zipfile.ZipInfo], list[str]]:
    """Give the entries that are read by their names, without the root, and the names of others."""
    [root, *others] = {name.partition("/")[0] for name in _names(archive)}
    entries: dict[str, zipfile.ZipInfo] = {}
    ignored = []
    for member in archive.infolist():
        name = member.filename.partition("/")[2]
        _refuse(name)
        check_member(member)
        if others or name in entries:
            raise Problem(
                "invalid_program", f"Entry {member.filename[:100]!a} lies outside of {root[:80]!a}."
            )
        if member.compress_type != zipfile.ZIP_STORED:
            raise Problem(
                "invalid_program", f"Entry {name[:100]!a} is compressed, as torch never does it."
            )
        if _DROPPED.fullmatch(name) or name == SAMPLE_INPUTS:
            ignored.append(name)
        elif name in (GRAPH, *_CONFIGS, *FIXED) or PAYLOAD.fullmatch(name):
            entries[name] = member
        else:
            raise Problem("invalid_program", f"Entry {name[:100]!a} is of no known kind. {_HOW}")
    for name in ("archive_format", "archive_version", "byteorder"):
        if name in entries and _read(archive, entries, name) != FIXED[name]:
            raise Problem("invalid_program", f"{name} is not {FIXED[name].decode()!r}. {_HOW}")
    return entries, ignored


def _refuse(name: str) -> None:
    """Refuse entries for what they are, whatever they hold."""
    code = "unsafe_program"
    last = name.rpartition("/")[2]
    if name.startswith("data/aotinductor/"):
        raise Problem(code, f"Entry {name[:100]!a} is compiled code. {_HOW}")
    if last.startswith(("custom_obj_", "opaque_obj_")):
        raise Problem(code, f"Entry {name[:100]!a} is an object, and no tensor. {_HOW}")
    if name.startswith(("data/weights/", "data/constants/")) and name.endswith(".pt"):
        raise Problem(
            code,
            f"Entry {name[:100]!a} is a pickle, as torch wrote it before 2.9. Load the program "
            "with a newer torch, and save it again.",
        )
    if name.startswith("executorch/"):
        raise Problem(code, f"Entry {name[:100]!a} is for another runtime. {_HOW}")
    model = _MODEL.fullmatch(name)
    if model and name != GRAPH:
        raise Problem(
            "invalid_program",
            f"The archive holds a program named {model[1][:80]!a}; one named 'model' is read, and "
            f"no other may be beside it. {_HOW}",
        )


def _read(archive: zipfile.ZipFile, entries: dict[str, zipfile.ZipInfo], name: str) -> bytes:
    if name not in entries:
        raise Problem("invalid_program", f"The archive has no {name}. {_HOW}")
    if entries[name].file_size > MAX_GRAPH_BYTES:
        raise Problem("invalid_program", f"{name} is larger than {MAX_GRAPH_BYTES} bytes.")
    return archive.read(entries[name])


def _pieces(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Iterator[bytes]:
    with archive.open(member) as content:
        while piece := content.read(CHUNK_BYTES):
            yield piece


def _number(name: str) -> tuple[str, int]:
    kind, _, number = name.rpartition("_")
    return kind, int(number)
