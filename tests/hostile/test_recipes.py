"""Recipes that are wrong, or that attack whoever reads them."""

import json

import pytest

HEADER = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
MODEL = len(HEADER).to_bytes(8, "little") + HEADER + bytes(8)
PRUNE = {"op": "prune", "sparsity": 0.5}
QUANTIZE = {"op": "quantize", "scheme": "w8a16"}


def steps(*members, **more):
    return json.dumps({"steps": members, **more}).encode()


CASES = {
    "empty": b"",
    "not text": b"\xff\xfe\x00",
    "a word": b"quantize",
    "a list": b"[]",
    "no steps": b"{}",
    "empty steps": b"steps: []",
    "seventeen steps": steps(*[PRUNE] * 17),
    "an unknown op": steps({"op": "distil"}),
    "an unknown key": steps({**PRUNE, "strength": 11}),
    "an unknown key at the top": steps(PRUNE, notify="http://169.254.169.254/"),
    "sparsity of one": steps({**PRUNE, "sparsity": 1}),
    "sparsity below zero": steps({**PRUNE, "sparsity": -0.1}),
    "sparsity that is no number": steps({**PRUNE, "sparsity": float("nan")}),
    "sparsity left out": steps({"op": "prune"}),
    "2:4 with another sparsity": steps({**PRUNE, "structure": "2:4", "sparsity": 0.3}),
    "an unknown scheme": steps({"op": "quantize", "scheme": "w1a1"}),
    "quantized twice": steps(QUANTIZE, QUANTIZE),
    "pruned after quantizing": steps(QUANTIZE, PRUNE),
    "an endless error": steps({**QUANTIZE, "max_relative_rmse": float("inf")}),
    "a target that is no size": steps({**QUANTIZE, "target_bytes": "1e999GB"}),
    "a target below nothing": steps({**QUANTIZE, "target_bytes": -(10**40)}),
    "no memory": steps(PRUNE, budget={"host_memory": 0}),
    "memory in parsecs": steps(PRUNE, budget={"host_memory": "2 parsecs"}),
    "a year of runtime": steps(PRUNE, budget={"runtime": "365d"}),
    "a gate below zero": steps(PRUNE, gate={"max_size_ratio": -1}),
    "an unknown output": steps(PRUNE, output={"format": "gguf"}),
    "a pattern of 300 characters": steps({**PRUNE, "include": ["x" * 300]}),
    "a thousand and one patterns": steps({**PRUNE, "exclude": ["x"] * 1001}),
    "half a surrogate": b'{"steps": [{"op": "prune", "sparsity": 0.5, "include": ["\\ud800"]}]}',
    "a tag that makes objects": b"!!python/object/apply:os.system ['touch /tmp/x']",
    "billion laughs": b"a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]\nsteps: *b",
    "an endless alias": b"&a [*a]",
    "nested a hundred thousand deep": b"[" * 100_000,
    "nested as yaml": b"- " * 20_000,
    "a number of 5000 digits": b'{"steps": ' + b"1" * 5000 + b"}",
    "two documents": b"steps: []\n---\nsteps: []",
    "a merge key": b"<<: {steps: []}",
    "a date": b"steps: 2026-11-21",
}


@pytest.mark.parametrize("recipe", CASES.values(), ids=CASES.keys())
def test_a_hostile_recipe_is_refused_and_leaves_nothing(client, kept, recipe):
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="model"; filename="m"\r\n\r\n' + MODEL,
        b'\r\n--b\r\nContent-Disposition: form-data; name="spec"\r\n\r\n' + recipe,
        b"\r\n--b--\r\n",
    ]
    before = kept()

    answer = client.post(
        "/jobs", data=b"".join(parts), content_type="multipart/form-data; boundary=b"
    )

    assert (answer.status_code, answer.json["code"]) == (422, "invalid_recipe"), answer.json
    assert kept() == before
