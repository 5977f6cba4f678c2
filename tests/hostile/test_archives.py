"""Archives that reach outside, lie, or explode."""

import gzip
import io
import json
import lzma
import struct
import tarfile
import warnings
import zipfile

import pytest

TENSOR = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
RAW = json.dumps(TENSOR).encode()
MODEL = len(RAW).to_bytes(8, "little") + RAW + bytes(8)
NAME = "model.safetensors"


def tarred(*entries, mode="w", fmt=tarfile.GNU_FORMAT, **pax):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=fmt) as tar:
        for name, content, changes in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            for key, value in changes.items():
                setattr(entry, key, value)
            entry.pax_headers = dict(pax)
            tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def tar_named(name):
    return tarred((NAME, MODEL, {}), (name, b"x", {}))


def tar_typed(kind, **changes):
    return tarred((NAME, MODEL, {}), ("other.json", b"", {"type": kind, **changes}))


def zipped(*entries, method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, content in entries:
                archive.writestr(name, content)
    return buffer.getvalue()


def zip_with(mode):
    info = zipfile.ZipInfo("other.json")
    info.external_attr = mode << 16
    return zipped((NAME, MODEL), (info, b"/etc/passwd"))


def patched(data, offset_of, at, value):
    """Change a field of the last local or the first directory header."""
    start = data.rindex(offset_of) if offset_of == b"PK\3\4" else data.index(offset_of)
    return data[: start + at] + value + data[start + at + len(value) :]


def with_longname(size):
    entry = tarfile.TarInfo("././@LongLink")
    entry.type, entry.size = tarfile.GNUTYPE_LONGNAME, size
    return entry.tobuf(tarfile.GNU_FORMAT)


def with_negative_size():
    block = bytearray(tarfile.TarInfo(NAME).tobuf(tarfile.GNU_FORMAT))
    block[124:136] = b"\xff" * 12
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + bytes(1024)


GOOD_ZIP = zipped((NAME, MODEL))
TWO_ZIP = zipped((NAME, MODEL), ("config.json", b"{}"))
ZEROS = bytes(8 * 2**20)

TARS = {
    "climbs out": (tar_named("../evil.json"), "unsafe_archive"),
    "climbs out inside": (tar_named("a/../../evil.json"), "unsafe_archive"),
    "absolute": (tar_named("/etc/evil.json"), "unsafe_archive"),
    "a drive": (tar_named("C:evil.json"), "unsafe_archive"),
    "a backslash": (tar_named("..\\evil.json"), "unsafe_archive"),
    "a newline in the name": (tar_named("a\nb.json"), "unsafe_archive"),
    "broken utf-8": (tar_named("\udcff.json"), "unsafe_archive"),
    "a symbolic link": (tar_typed(tarfile.SYMTYPE, linkname="/etc/passwd"), "unsafe_archive"),
    "a hard link": (tar_typed(tarfile.LNKTYPE, linkname=NAME), "unsafe_archive"),
    "a device": (tar_typed(tarfile.CHRTYPE), "unsafe_archive"),
    "a pipe": (tar_typed(tarfile.FIFOTYPE), "unsafe_archive"),
    "a sparse file": (tar_typed(tarfile.GNUTYPE_SPARSE), "unsafe_archive"),
    "twice the same name": (tarred((NAME, MODEL, {}), (f"./{NAME}", MODEL, {})), "unsafe_archive"),
    "a file as a folder": (tarred((NAME, MODEL, {}), (f"{NAME}/x", b"", {})), "unsafe_archive"),
    "nine levels": (tar_named("/".join("abcdefghi")), "unsafe_archive"),
    "five thousand entries": (
        tarred(*((f"{i}.bak", b"", {}) for i in range(5000))),
        "unsafe_archive",
    ),
    "two thousand files": (
        tarred(*((f"{i}.txt", b"", {}) for i in range(2000))),
        "unsafe_archive",
    ),
    "a long name without end": (with_longname(32 * 2**20) + bytes(16 * 2**20), "unsafe_archive"),
    "long names without end": (with_longname(10) * 3000, "invalid_archive"),
    "a negative size": (with_negative_size(), "invalid_archive"),
    "a pax size that is none": (
        tarred((NAME, MODEL, {}), fmt=tarfile.PAX_FORMAT, size="x"),
        "invalid_archive",
    ),
    "a pax size below zero": (
        tarred((NAME, MODEL, {}), fmt=tarfile.PAX_FORMAT, size="-512"),
        "invalid_archive",
    ),
    "cut inside a file": (tarred((NAME, MODEL, {}))[:520], "invalid_archive"),
    "cut before its end": (tarred((NAME, MODEL, {}))[:1024], "invalid_archive"),
    "a damaged second header": (
        tarred((NAME, MODEL, {}))[:1024] + b"x" * 512 + bytes(1024),
        "invalid_archive",
    ),
    "something behind its end": (tarred((NAME, MODEL, {})) + b"PK", "invalid_archive"),
    "more than may come out": (tarred((NAME, ZEROS + b"x", {})), "too_large"),
    "no model": (tarred(("config.json", b"{}", {})), "invalid_checkpoint"),
    "shards without an index": (
        tarred(("a.safetensors", MODEL, {}), ("b.safetensors", MODEL, {})),
        "duplicate_tensor",
    ),
    "a config that is a list": (
        tarred((NAME, MODEL, {}), ("config.json", b"[]", {})),
        "invalid_config",
    ),
    "a config of brackets": (
        tarred((NAME, MODEL, {}), ("config.json", b"[" * 200_000, {})),
        "invalid_config",
    ),
    "a config with a number of 5000 digits": (
        tarred((NAME, MODEL, {}), ("config.json", b'{"a":' + b"1" * 5000 + b"}", {})),
        "invalid_config",
    ),
    "an index that names nothing": (
        tarred(
            (NAME, MODEL, {}),
            ("model.safetensors.index.json", b'{"weight_map": {"x": "../../etc/passwd"}}', {}),
        ),
        "invalid_checkpoint",
    ),
    "pickles alone": (tarred(("pytorch_model.bin", b"\x80\x02.", {})), "unsupported_format"),
    "gzip": (gzip.compress(tarred((NAME, MODEL, {}))), "unsupported_format"),
    "xz": (lzma.compress(tarred((NAME, MODEL, {}))), "unsupported_format"),
}

ZIPS = {
    "climbs out": (zipped((NAME, MODEL), ("../evil.json", b"")), "unsafe_archive"),
    "absolute": (zipped((NAME, MODEL), ("/evil.json", b"")), "unsafe_archive"),
    "twice the same name": (zipped((NAME, MODEL), (NAME, MODEL)), "unsafe_archive"),
    "a symbolic link": (zip_with(0o120777), "unsafe_archive"),
    "a device": (zip_with(0o020666), "unsafe_archive"),
    "a bomb": (
        zipped(("a.json", bytes(80 * 2**20)), method=zipfile.ZIP_DEFLATED),
        "unsafe_archive",
    ),
    "more than may come out": (
        zipped((NAME, ZEROS + b"x"), method=zipfile.ZIP_DEFLATED),
        "too_large",
    ),
    "bzip2 inside": (zipped((NAME, MODEL), method=zipfile.ZIP_BZIP2), "unsafe_archive"),
    "encrypted": (
        patched(patched(GOOD_ZIP, b"PK\3\4", 6, b"\1"), b"PK\1\2", 8, b"\1"),
        "unsafe_archive",
    ),
    "another name in the record": (
        patched(GOOD_ZIP, b"PK\3\4", 30, b"n"),
        "invalid_archive",
    ),
    "another method in the record": (patched(GOOD_ZIP, b"PK\3\4", 8, b"\x08"), "invalid_archive"),
    "another size in the record": (patched(GOOD_ZIP, b"PK\3\4", 18, b"\1"), "invalid_archive"),
    "records that overlap": (
        patched(TWO_ZIP, b"PK\1\2", 20, struct.pack("<II", len(MODEL) + 9, len(MODEL) + 9)),
        "invalid_archive",
    ),
    "something before its start": (b"PK\3\4" + bytes(60) + GOOD_ZIP, "invalid_archive"),
    "something behind its end": (GOOD_ZIP + b"#!/bin/sh", "invalid_archive"),
    "something between": (
        GOOD_ZIP[: GOOD_ZIP.index(b"PK\1\2")] + b"gap" + GOOD_ZIP[GOOD_ZIP.index(b"PK\1\2") :],
        "invalid_archive",
    ),
    "a damaged directory": (patched(GOOD_ZIP, b"PK\1\2", 0, b"XX"), "invalid_archive"),
    "a wrong checksum": (patched(GOOD_ZIP, b"PK\1\2", 16, b"\0\0\0\0"), "invalid_archive"),
    "cut": (GOOD_ZIP[:-10], "invalid_archive"),
    "a directory past the end": (
        GOOD_ZIP[:-10] + struct.pack("<IIH", 2**31, 2**31, 0),
        "invalid_archive",
    ),
    "empty": (zipped(), "invalid_checkpoint"),
    "five thousand entries": (
        zipped(*((f"{i}.bak", b"") for i in range(5000))),
        "unsafe_archive",
    ),
    "two thousand files": (
        zipped(*((f"{i}.txt", b"") for i in range(2000))),
        "unsafe_archive",
    ),
    "no model": (zipped(("config.json", b"{}")), "invalid_checkpoint"),
}

CASES = {f"tar, {name}": case for name, case in TARS.items()}
CASES |= {f"zip, {name}": case for name, case in ZIPS.items()}


@pytest.mark.parametrize(("body", "code"), CASES.values(), ids=CASES.keys())
def test_a_hostile_archive_is_refused_and_leaves_nothing(client, kept, body, code):
    before = kept()

    answer = client.post("/models", data=io.BytesIO(body))

    expected = {"too_large": 413, "unsupported_format": 415}.get(code, 422)
    assert (answer.status_code, answer.json["code"]) == (expected, code), answer.json
    assert kept() == before
