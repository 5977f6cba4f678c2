"""Safetensors files that lie about themselves."""

import json

import pytest

TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def packed(header, data=bytes(8), length=None):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(raw) if length is None else length).to_bytes(8, "little") + raw + data


def one(**changes):
    return packed({"w": {**TENSOR, **changes}})


CASES = {
    "truncated prefix": (b"\x08\x00\x00\x00\x00", 415, "unsupported_format"),
    "length past the end": (packed(b"{}", length=10_000), 422, "invalid_header"),
    "length of 2**63": (packed(b"{}", length=2**63), 422, "header_too_large"),
    "length past the limit": (packed(b"{}", length=17 * 2**20), 422, "header_too_large"),
    "not json": (packed(b"{not json}"), 422, "invalid_header"),
    "not utf-8": (packed(b'{"\xff": 1}'), 422, "invalid_header"),
    "a list": (packed(b"[1, 2]  "), 422, "invalid_header"),
    "nested a million deep": (packed(b'{"w":' + b"[" * 1_000_000), 422, "invalid_header"),
    "an integer of 5000 digits": (packed(b'{"w":' + b"1" * 5000 + b"}"), 422, "invalid_header"),
    "duplicate names": (
        packed(b'{"w":%b,"w":%b}' % ((json.dumps(TENSOR).encode(),) * 2)),
        422,
        "duplicate_tensor",
    ),
    "metadata of numbers": (packed({"__metadata__": {"a": 1}, "w": TENSOR}), 422, "invalid_header"),
    "no tensors": (packed({}, b""), 422, "invalid_checkpoint"),
    "an empty name": (packed({"": TENSOR}), 422, "invalid_tensor"),
    "a name with a control character": (packed({"a\x00b": TENSOR}), 422, "invalid_tensor"),
    "half a surrogate as name": (packed(b'{"\\ud800":{}}'), 422, "invalid_tensor"),
    "a name of 600 characters": (packed({"n" * 600: TENSOR}), 422, "invalid_tensor"),
    "an unknown dtype": (one(dtype="F31"), 422, "invalid_tensor"),
    "a dtype that is a list": (one(dtype=["F32"]), 422, "invalid_tensor"),
    "a negative dimension": (one(shape=[-2]), 422, "invalid_tensor"),
    "a fraction of a dimension": (one(shape=[2.0]), 422, "invalid_tensor"),
    "a true dimension": (one(shape=[True, 2]), 422, "invalid_tensor"),
    "dimensions that overflow": (one(shape=[2**62, 2**62]), 422, "invalid_tensor"),
    "a hundred thousand dimensions": (one(shape=[1] * 100_000), 422, "invalid_tensor"),
    "three offsets": (one(data_offsets=[0, 4, 8]), 422, "invalid_tensor"),
    "offsets backwards": (one(data_offsets=[8, 0]), 422, "invalid_tensor"),
    "a further key": (one(code="import os"), 422, "invalid_tensor"),
    "a missing key": (packed({"w": {"dtype": "F32", "shape": [2]}}), 422, "invalid_tensor"),
    "overlapping tensors": (packed({"a": TENSOR, "b": TENSOR}), 422, "tensor_overlap"),
    "a gap before": (one(data_offsets=[4, 12]), 422, "tensor_gap"),
    "bytes behind the last tensor": (packed({"w": TENSOR}, bytes(9)), 422, "tensor_gap"),
    "a zip behind the last tensor": (
        packed({"w": TENSOR}, bytes(8) + b"PK\3\4"),
        422,
        "tensor_gap",
    ),
    "data that is missing": (packed({"w": TENSOR}, bytes(7)), 422, "tensor_out_of_bounds"),
}


@pytest.mark.parametrize(("body", "status", "code"), CASES.values(), ids=CASES.keys())
def test_a_lying_safetensors_file_is_refused_and_leaves_nothing(client, kept, body, status, code):
    before = kept()

    answer = client.post("/models", data=body)

    assert (answer.status_code, answer.json["code"]) == (status, code), answer.json
    assert kept() == before


def test_a_name_that_looks_like_a_path_is_only_a_name(client, kept):
    answer = client.post("/models", data=packed({"../../x": TENSOR}))

    assert answer.status_code == 201
    assert not [path for path in kept() if path.endswith("/x")]
