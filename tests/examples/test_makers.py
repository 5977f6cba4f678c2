import json
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.checkpoint import open_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"


def make(script: str, *words: object) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, words)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.slow
def test_the_two_layer_net_is_one_checkpoint_with_the_same_bytes_each_time(tmp_path):
    (tmp_path / "a").mkdir()

    make("make_two_layer_net.py", tmp_path / "a" / "net.safetensors")
    make("make_two_layer_net.py", tmp_path / "again.safetensors")

    tensors = open_checkpoint(tmp_path / "a").tensors
    assert {name: tensor.shape for name, tensor in tensors.items()} == {
        "0.weight": (100, 1000),
        "0.bias": (100,),
        "2.weight": (10, 100),
        "2.bias": (10,),
    }
    again = (tmp_path / "again.safetensors").read_bytes()
    assert (tmp_path / "a" / "net.safetensors").read_bytes() == again


@pytest.mark.slow
def test_the_tiny_llama_is_a_transformers_folder_of_bf16_shards(tmp_path):
    make("make_llama.py", tmp_path / "llama", "--size", "tiny")

    facts = open_checkpoint(tmp_path / "llama").facts()
    config = json.loads((tmp_path / "llama" / "config.json").read_text())
    assert facts["format"] == "transformers"
    assert len(facts["files"]) > 1
    assert set(facts["parameters_by_dtype"]) == {"BF16"}
    assert config["architectures"] == ["LlamaForCausalLM"]
