import io
import json
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import save_file

from evaluation.datasets import read_rows
from evaluation.text_rows import TextRows
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
        (npz(a=np.zeros((1, 2 * 10**7), np.int8)), "Lower batch_size"),
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


@pytest.mark.parametrize("group", [2, 100])
def test_parquet_is_read_some_rows_at_a_time_with_its_labels(tmp_path, group):
    table = pa.table({"label": [0, 1, 0, 1, 1], "text": [f"t{i}" for i in range(5)]})
    parquet.write_table(table, tmp_path / "d", row_group_size=group)

    assert list(read_rows(tmp_path / "d", 2, 3)) == [
        TextRows(["t0", "t1"], [0, 1]),
        TextRows(["t2"], [0]),
    ]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"texts": ["a"]}, "It has the column 'texts'"),
        ({"label": [1]}, "It has no column text of strings"),
        ({"text": [1, 2]}, "It has no column text of strings"),
        ({"text": ["a", None]}, "Row 2 has no text"),
    ],
)
def test_parquet_without_texts_is_refused_by_column_or_row(tmp_path, columns, said):
    parquet.write_table(pa.table(columns), tmp_path / "d")

    with pytest.raises(Problem, match=said) as caught:
        list(read_rows(tmp_path / "d", 2, 10))
    assert caught.value.code == "invalid_dataset"


def test_parquet_that_was_cut_is_refused(tmp_path):
    parquet.write_table(pa.table({"text": ["a"] * 100}), tmp_path / "d")
    (tmp_path / "d").write_bytes((tmp_path / "d").read_bytes()[:-20])

    with pytest.raises(Problem, match="It is no parquet file"):
        list(read_rows(tmp_path / "d", 2, 10))


def png_of(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def archive_of(path, images):
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name, image in images.items():
            content = image if isinstance(image, bytes) else png_of(image)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_images_have_their_folders_for_labels_and_the_same_ones_come_first_each_time(tmp_path):
    shades = {f"set/{'cat' if i % 2 else 'dog'}/{i}.png": 10 * i for i in range(8)}
    images = {name: Image.new("L", (3, 2), shade) for name, shade in shades.items()}
    path = archive_of(tmp_path / "d", images | {"set/cat/.DS_Store": b"x"})

    parts = list(read_rows(path, 3, 5))

    assert [len(part.names) for part in parts] == [3, 2]
    for part in parts:
        assert part.labels == [name.split("/")[1] for name in part.names]
        for name, image in zip(part.names, part.decoded(), strict=True):
            assert (image.mode, image.size) == ("RGB", (3, 2))
            assert image.getpixel((0, 0)) == (shades[name],) * 3
    assert [part.names for part in read_rows(path, 3, 5)] == [part.names for part in parts]


def test_images_in_no_folder_have_no_labels(tmp_path):
    path = archive_of(tmp_path / "d", {"a.png": Image.new("RGB", (1, 1))})

    assert [part.labels for part in read_rows(path, 3, 5)] == [None]


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    path = archive_of(tmp_path / "d", {"x/a.png": b"no image"})

    [part] = read_rows(path, 3, 5)

    with pytest.raises(Problem, match=r"'x/a.png' is no JPEG, PNG, WebP or BMP"):
        list(part.decoded())


def test_an_image_of_too_many_pixels_is_not_decoded(tmp_path):
    path = archive_of(tmp_path / "d", {"x/a.png": Image.new("1", (9000, 9000))})

    [part] = read_rows(path, 3, 5)

    with pytest.raises(Problem, match="has 9000 by 9000 pixels; 67108864 together"):
        list(part.decoded())


def test_links_in_an_archive_of_images_are_refused(tmp_path):
    with tarfile.open(tmp_path / "d", "w") as archive:
        member = tarfile.TarInfo("x/a.png")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(member)

    with pytest.raises(Problem, match=r"'x/a.png' is no plain file"):
        list(read_rows(tmp_path / "d", 3, 5))


def test_some_images_in_folders_and_some_not_is_no_data_set(tmp_path):
    image = Image.new("RGB", (1, 1))
    path = archive_of(tmp_path / "d", {"x/a.png": image, "b.png": image})

    with pytest.raises(Problem, match="Some images lie in a folder"):
        list(read_rows(path, 3, 5))
