import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from jobs.problems import Problem
from jobs.safetensors_header import (
    DTYPE_BYTES,
    MAX_HEADER_BYTES,
    TensorSpec,
    encode_header,
    parse_header,
    read_header,
)

A = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def header(**tensors):
    return json.dumps(tensors).encode()


def test_the_reference_library_and_we_read_the_same(tmp_path):
    path = tmp_path / "m.safetensors"
    tensors = {"b": np.zeros((3, 4), np.float32), "a": np.ones(5, np.int64), "s": np.float16(2)}
    save_file({k: np.asarray(v) for k, v in tensors.items()}, path, metadata={"format": "np"})

    found = read_header(path)

    assert found.metadata == {"format": "np"}
    assert {t.name: (t.dtype, t.shape) for t in found.tensors} == {
        "b": ("F32", (3, 4)),
        "a": ("I64", (5,)),
        "s": ("F16", ()),
    }
    assert found.data_start + found.data_bytes == path.stat().st_size


def test_the_reference_library_reads_what_we_write(tmp_path):
    specs = [TensorSpec("x", "BF16", (2, 2), 0), TensorSpec("empty", "F32", (0, 3), 8)]
    path = tmp_path / "m.safetensors"

    path.write_bytes(encode_header(specs, {"format": "pt"}) + bytes(8))

    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"x", "empty"}
        assert file.metadata() == {"format": "pt"}
        assert tuple(file.get_tensor("empty").shape) == (0, 3)
    assert read_header(path).data_start % 8 == 0


@given(
    st.lists(
        st.tuples(st.sampled_from(sorted(DTYPE_BYTES)), st.lists(st.integers(0, 5), max_size=4)),
        max_size=8,
    )
)
def test_a_header_that_was_written_is_read_back_equal(rows):
    specs, start = [], 0
    for i, (dtype, shape) in enumerate(rows):
        specs.append(TensorSpec(f"t{i}", dtype, tuple(shape), start))
        start += specs[-1].nbytes

    raw = encode_header(specs, {})

    assert sorted(parse_header(raw[8:], start).tensors, key=lambda t: t.name) == specs


@pytest.mark.parametrize(
    ("raw", "data_bytes", "code"),
    [
        (b"", 0, "invalid_header"),
        (b"[]", 0, "invalid_header"),
        (b"{", 0, "invalid_header"),
        (b"\xff", 0, "invalid_header"),
        (b'{"a":' * 50_000, 0, "invalid_header"),
        (b'{"__metadata__": {"a": 1}}', 0, "invalid_header"),
        (b'{"__metadata__": []}', 0, "invalid_header"),
        (b'{"a": 1, "a": 2}', 0, "duplicate_tensor"),
        (header(a=A)[:-1] + b', "a": {}}', 24, "duplicate_tensor"),
        (header(a=[]), 0, "invalid_tensor"),
        (header(a=A | {"more": 1}), 24, "invalid_tensor"),
        (header(a=A | {"dtype": "F31"}), 24, "invalid_tensor"),
        (header(a=A | {"dtype": ["F32"]}), 24, "invalid_tensor"),
        (header(a=A | {"shape": [2, -3]}), 24, "invalid_tensor"),
        (header(a=A | {"shape": [2, 3.0]}), 24, "invalid_tensor"),
        (header(a=A | {"shape": [True, 6]}), 24, "invalid_tensor"),
        (header(a=A | {"shape": [1] * 9}), 24, "invalid_tensor"),
        (header(a=A | {"shape": [2**62, 2**62]}), 24, "invalid_tensor"),
        (header(a=A | {"data_offsets": [0, 23]}), 24, "invalid_tensor"),
        (header(a=A | {"data_offsets": [24, 0]}), 24, "invalid_tensor"),
        (header(a=A | {"data_offsets": [0]}), 24, "invalid_tensor"),
        (header(**{"": A}), 24, "invalid_tensor"),
        (header(**{"a\n": A}), 24, "invalid_tensor"),
        (header(**{"a" * 513: A}), 24, "invalid_tensor"),
        (header(a=A, b=A), 24, "tensor_overlap"),
        (header(a=A, b=A | {"data_offsets": [23, 47]}), 47, "tensor_overlap"),
        (header(a=A | {"data_offsets": [1, 25]}), 25, "tensor_gap"),
        (header(a=A), 25, "tensor_gap"),
        (header(a=A), 23, "tensor_out_of_bounds"),
    ],
)
def test_a_header_that_does_not_describe_its_file_is_refused(raw, data_bytes, code):
    with pytest.raises(Problem) as caught:
        parse_header(raw, data_bytes)

    assert caught.value.code == code
    assert caught.value.status == 422


@pytest.mark.slow
def test_too_many_tensors_are_refused():
    members = {
        str(i): {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(100_001)
    }

    with pytest.raises(Problem, match="100001 tensors; the limit is 100000"):
        parse_header(json.dumps(members).encode(), 0)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "starts with 8 bytes"),
        (b"\x01\x02", "starts with 8 bytes"),
        ((100).to_bytes(8, "little") + b"{}", "but only 2 follow"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little"), f"the limit is {MAX_HEADER_BYTES}"),
        ((2**63).to_bytes(8, "little"), "Is this a safetensors file"),
    ],
)
def test_a_length_prefix_that_cannot_be_true_is_refused(tmp_path, content, message):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)

    with pytest.raises(Problem, match=message):
        read_header(path)
