"""How much memory a calibration takes for how many blocks, measured in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from jobs.checkpoint import open_checkpoint
from jobs.safetensors_header import TensorSpec, encode_header
from planning.walks import largest_block_bytes

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 512,
    "intermediate_size": 3584,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "dtype": "float32",
    "tie_word_embeddings": False,
}
CHILD = """
import json, sys, tempfile
from pathlib import Path
from calibration.running import calibrate
from evaluation.resident import PeakMeter, level_bytes
from jobs.recipe import parse_recipe

dataset, recipes = Path(sys.argv[1]), json.loads(sys.argv[2])
for recipe in map(parse_recipe, recipes):
    for folder in sys.argv[3:]:
        before, meter = level_bytes(), PeakMeter()
        with tempfile.TemporaryDirectory() as work:
            found = calibrate(Path(folder), dataset, recipe, Path(work), lambda *_: None)
        print(json.dumps([found.blocks, meter.take() - before]))
"""
OUTPUTS = {"include": ["*.o_proj"]}
WANDA = {"op": "prune", "method": "wanda", "sparsity": 0.5, **OUTPUTS}
GPTQ = {"op": "quantize", "scheme": "w8a16", "method": "gptq", **OUTPUTS}
SHRINK = {"op": "shrink", "width": 0.5, "importance": "activation"}


def write_zeros(folder: Path, layers: int) -> Path:
    """Write a model of nothing but zeros, which takes no room on the disk."""
    hidden, inner = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes = {"model.embed_tokens.weight": (64, hidden), "lm_head.weight": (64, hidden)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        square = ("q_proj", "k_proj", "v_proj", "o_proj")
        shapes |= {f"{prefix}.self_attn.{name}.weight": (hidden, hidden) for name in square}
        shapes |= {
            f"{prefix}.mlp.{name}.weight": (inner, hidden) for name in ("gate_proj", "up_proj")
        }
        shapes[f"{prefix}.mlp.down_proj.weight"] = (hidden, inner)
        norms = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"{prefix}.{name}.weight": (hidden,) for name in norms}
    shapes["model.norm.weight"] = (hidden,)
    specs, end = [], 0
    for name, shape in shapes.items():
        specs.append(TensorSpec(name, "F32", shape, end))
        end += specs[-1].nbytes
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": layers}))
    with (folder / "model.safetensors").open("wb") as file:
        file.write(encode_header(specs, {"format": "pt"}))
        file.truncate(file.tell() + end)
    return folder


def test_a_calibration_of_many_blocks_takes_the_memory_of_one_of_few(tmp_path):
    few, many = write_zeros(tmp_path / "few", 4), write_zeros(tmp_path / "many", 24)
    save_file({"input_ids": torch.randint(64, (6, 8))}, tmp_path / "rows")
    section = {"calibrate": {"dataset": "ds_" + "0" * 64, "batch_size": 2}}
    recipes = json.dumps([{"steps": steps, **section} for steps in ([WANDA, GPTQ], [SHRINK])])
    block = largest_block_bytes(open_checkpoint(few))
    assert block > 25 * 10**6

    child = subprocess.run(
        # The first one of a recipe pays for what is imported on the way.
        [sys.executable, "-c", CHILD, tmp_path / "rows", recipes, few, few, many],
        capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip

    assert child.returncode == 0, child.stderr
    said = [json.loads(line) for line in child.stdout.splitlines()]
    assert [blocks for blocks, _ in said] == [4, 4, 24] * 2
    for peaks in ([peak for _, peak in said[1:3]], [peak for _, peak in said[4:]]):
        # Beside the block, gptq holds a few matrices as large as the layer that it rounds.
        assert all(0.9 * block < peak < 2 * block for peak in peaks)
        assert abs(peaks[1] - peaks[0]) < block / 2
