import json

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM

from benchmarks.checkpoints import Llama, llama_of_size, write_llama
from benchmarks.engine import SIZES

LLAMA = Llama(hidden=128, feed_forward=192, layers=2, key_value_heads=1, vocabulary=100)


@pytest.mark.parametrize("llama", [LLAMA, SIZES["1.1B"]], ids=["small", "1.1B"])
def test_the_shapes_are_those_of_transformers(llama):
    with torch.device("meta"):
        model = LlamaForCausalLM(llama.config())

    assert llama.shapes() == {name: tuple(t.shape) for name, t in model.state_dict().items()}
    assert llama.parameters == model.num_parameters()


def test_a_folder_holds_every_tensor_where_its_index_says(tmp_path):
    write_llama(tmp_path / "model", LLAMA)

    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    shapes = {}
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "model" / file, "pt") as shard:
            tensor = shard.get_tensor(name)
            shapes[name] = tuple(tensor.shape)
            assert tensor.dtype == torch.bfloat16
    assert shapes == LLAMA.shapes()
    assert index["metadata"]["total_size"] == 2 * LLAMA.parameters


def test_the_bytes_are_the_same_each_time(tmp_path):
    for name in ("one", "two"):
        write_llama(tmp_path / name, LLAMA)

    one, two = (
        {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()}
        for name in ("one", "two")
    )
    assert one == two


@pytest.mark.parametrize("nbytes", [4_000_000, 500_000_000, 2_000_000_000])
def test_a_size_in_bytes_is_met_within_a_layer(nbytes):
    llama = llama_of_size(nbytes)

    assert 2 * llama.parameters == pytest.approx(nbytes, rel=0.1)
