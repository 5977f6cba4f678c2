import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
from pathlib import Path
from engine.pipeline import compress
from jobs.recipe import parse_recipe
recipe = parse_recipe(json.loads(sys.argv[3]))
report = compress(Path(sys.argv[1]), Path(sys.argv[2]), recipe, on_progress=lambda _: None)
assert not {"torch", "transformers"} & set(sys.modules)
print(report.memory.model_dump_json())
"""


def test_the_meter_keeps_a_peak_that_is_over():
    # In a process of its own: what earlier tests left in this one may be given back meanwhile.
    script = """
import numpy as np
from engine.memory import MemoryMeter

meter = MemoryMeter()
with meter:
    block = np.ones(64 * 1024**2, np.uint8)
    meter.sample()
    del block
print(meter.idle.anonymous_peak_bytes, *dict(meter.peak).values())
"""
    command = [sys.executable, "-c", script]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    idle, anonymous, _, resident = map(int, said.split())

    assert 64 * 1024**2 <= anonymous - idle <= 72 * 1024**2
    assert resident >= anonymous


@pytest.mark.parametrize(
    "steps",
    [
        [{"op": "quantize", "scheme": "w8a16"}],
        [{"op": "prune", "sparsity": 0.5}, {"op": "quantize", "scheme": "w8a8"}],
        [{"op": "prune", "structure": "2:4"}],
    ],
    ids=["w8a16", "magnitude then w8a8", "2:4"],
)
def test_compressing_64_mb_adds_less_than_24_mb(save_model, tmp_path, weights, steps):
    import torch

    model = save_model({"a.weight": weights(8192, 4096).to(torch.bfloat16)})
    (tmp_path / "artifact").mkdir()

    child = subprocess.run(
        [sys.executable, "-c", SCRIPT, model, tmp_path / "artifact", json.dumps({"steps": steps})],
        capture_output=True,
        text=True,
        check=True,
    )

    memory = json.loads(child.stdout)
    assert memory["added_anonymous_bytes"] < 24 * 1000**2
    assert memory["device"] is None


def test_a_flat_tensor_without_rows_is_pruned_in_little_memory(save_model, tmp_path, weights):
    model = save_model({"a.weight": weights(1, 16 * 1024**2)})
    (tmp_path / "artifact").mkdir()
    recipe = {"steps": [{"op": "prune", "sparsity": 0.5}]}

    child = subprocess.run(
        [sys.executable, "-c", SCRIPT, model, tmp_path / "artifact", json.dumps(recipe)],
        capture_output=True,
        text=True,
        check=True,
    )

    assert json.loads(child.stdout)["added_anonymous_bytes"] < 24 * 1000**2
