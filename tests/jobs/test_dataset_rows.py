import io
import tarfile

import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs.dataset_rows import count_rows


def write_lines(path):
    path.write_text('{"text": "a"}\n\n{"text": "b"}\n{"text": "c"}')


def write_archive(path):
    with tarfile.open(path, "w") as archive:
        for name in ("cat", "cat/a.png", "cat/.hidden", "b.png", "c.png"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.DIRTYPE if name == "cat" else tarfile.REGTYPE
            archive.addfile(info, io.BytesIO())


def write_arrays(path):
    with path.open("wb") as file:
        np.savez_compressed(file, x=np.zeros((3, 2)), y=np.zeros(3))


@pytest.mark.parametrize(
    "write",
    [
        write_lines,
        write_archive,
        lambda path: save_file({"x": np.zeros((3, 2), np.float32)}, path),
        write_arrays,
    ],
    ids=["lines", "tar", "safetensors", "npz"],
)
def test_rows_are_counted_without_reading_them(tmp_path, write):
    write(tmp_path / "data")

    assert count_rows(tmp_path / "data") == 3


@pytest.mark.parametrize(
    "content", [b"PAR1" + bytes(20), b"PK\x03\x04 no zip", bytes(600), b"\x08" + bytes(7) + b"{]"]
)
def test_what_only_a_reader_can_tell_is_left_to_one(tmp_path, content):
    (tmp_path / "data").write_bytes(content)

    assert count_rows(tmp_path / "data") is None


def test_what_is_too_long_is_not_gone_through(tmp_path):
    write_lines(tmp_path / "data")

    assert count_rows(tmp_path / "data", most_bytes=10) is None
