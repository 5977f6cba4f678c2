import io
import json
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from evaluation.datasets import TextRows, read_rows
from jobs.problems import Problem


def lines(path, *rows):
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return path


def test_lines_are_read_some_at_a_time_with_their_labels(tmp_path):
    path = lines(tmp_path / "d", *({"text": f"t{i}", "label": i % 2} for i in range(5)))

    assert list(read_rows(path, 2, 4)) == [
        TextRows(["t0", "t1"], [0, 1]),
        TextRows(["t2", "t3"], [0, 1]),
    ]


def test_lines_without_labels_have_none_and_empty_ones_do_not_count(tmp_path):
    path = lines(tmp_path / "d", {"text": "ä"}, "", {"text": "b"})

    assert list(read_rows(path, 8, 8)) == [TextRows(["ä", "b"], None)]


@pytest.mark.parametrize("name", ["d.safetensors", "d.npz"])
@pytest.mark.parametrize("packed", [False, True])
def test_tensors_are_read_some_rows_at_a_time(tmp_path, name, packed):
    fields = {
        "input_ids": torch.arange(35).reshape(7, 5),
        "labels": torch.arange(7),
        "pixel_values": torch.randn(7, 3, 4, 4),
    }
    path = tmp_path / name
    if name.endswith("npz"):
        save = np.savez_compressed if packed else np.savez
        save(path, **{key: value.numpy() for key, value in fields.items()})
    else:
        save_file(fields, path)

    batches = list(read_rows(path, 3, 6))

    assert [len(batch["labels"]) for batch in batches] == [3, 3]
    for field, tensor in fields.items():
        found = torch.cat([batch[field] for batch in batches])
        torch.testing.assert_close(found, tensor[:6], rtol=0, atol=0)


def npz(**arrays):
    raw = io.BytesIO()
    np.savez(raw, **arrays)
    return raw.getvalue()


def npz_packed(**arrays):
    raw = io.BytesIO()
    np.savez_compressed(raw, **arrays)
    return raw.getvalue()


def damaged(raw):
    return raw[:200] + bytes(byte ^ 0x55 for byte in raw[200:400]) + raw[400:]


def zipped(**files):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return raw.getvalue()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"text,label\n", "first bytes are 74 65"),
        (b"", "first bytes are"),
        (b'{"text": 1}\n', "Line 1 is no object with a text"),
        (b'{"text": "a"}\n[]\n', "Line 2 is no object with a text"),
        (b'{"text": "a"}\n{"text": \n', "Line 2 is not JSON"),
        (b'{"text": "a", "lbl": 1}', "Line 1 has the member 'lbl'"),
        (b'{"text": "a", "label": 1}\n{"text": "b"}', "Line 2 has no label"),
        (b'{"text": "a"}\n{"text": "b", "label": 1}', "Line 2 has a label"),
        (b'{"text": "' + b"a" * 5 * 2**20 + b'"}', "Line 1 is longer than 4194304 bytes"),
        (b"{" * 100_000, "Line 1 is not JSON"),
        (npz(a=np.zeros(3), b=np.zeros(4)), "Field 'b' has 4 rows, and 'a' has 3"),
        (npz(a=np.zeros(0)), "Field 'a' has no rows"),
        (npz(a=np.float32(1)), "Field 'a' has no rows"),
        (npz(a=np.array(["x"])), "a.npy has dtype <U1; numbers are read, never objects"),
        (npz(a=np.array([{}])), "numbers are read, never objects"),
        (npz(a=np.asfortranarray(np.zeros((3, 2)))), "Fortran"),
        (npz(a=np.zeros(3, np.longdouble)), "numbers are read"),
        (npz(a=np.zeros((1, 2 * 10**7), np.int8)), "Lower evaluate.batch_size"),
        (damaged(npz_packed(a=np.arange(10_000))), "It is no .npz file"),
        (npz(), "first bytes are 50 4b 05 06"),
        (npz(a=np.zeros(9))[:-90], "It is no .npz file"),
        (zipped(**{"a.npy": npz(a=np.zeros(9))[:200]}), "It is no .npz file"),
        (zipped(**{"a.txt": b"text"}), "It is no .npz file"),
        (b"\x10\0\0\0\0\0\0\0{" + b" " * 30, "It is no safetensors file"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path, raw, said):
    path = tmp_path / "data"
    path.write_bytes(raw)

    with pytest.raises(Problem) as caught:
        list(read_rows(path, 2, 100))

    assert caught.value.code == "invalid_dataset"
    assert said in caught.value.detail
    assert len(caught.value.detail) < 500
