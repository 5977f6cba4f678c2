import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from jobs.checkpoint import INDEX_NAME, open_checkpoint
from jobs.problems import Problem

ONE = np.ones((2, 3), np.float32)


def write_shards(folder, weight_map=None):
    save_file({"a": ONE}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": ONE.astype(np.float16)}, folder / "model-00002-of-00002.safetensors")
    if weight_map is None:
        weight_map = {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


def test_a_single_file_is_a_checkpoint(tmp_path):
    save_file({"a": ONE}, tmp_path / "model.safetensors")

    facts = open_checkpoint(tmp_path).facts()

    assert facts == {
        "format": "safetensors",
        "architecture": None,
        "files": ["model.safetensors"],
        "tensors": 1,
        "parameters": 6,
        "tensor_bytes": 24,
        "parameters_by_dtype": {"F32": 6},
        "bytes_by_dtype": {"F32": 24},
    }


def test_shards_with_an_index_are_one_checkpoint(tmp_path):
    write_shards(tmp_path)

    checkpoint = open_checkpoint(tmp_path)

    assert checkpoint.format == "sharded-safetensors"
    assert list(checkpoint.tensors) == ["a", "b"]
    assert checkpoint.facts()["bytes_by_dtype"] == {"F16": 12, "F32": 24}


def test_a_config_makes_it_a_transformers_folder(tmp_path):
    save_file({"a": ONE}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')

    facts = open_checkpoint(tmp_path).facts()

    assert (facts["format"], facts["architecture"]) == ("transformers", "LlamaForCausalLM")


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-00001-of-00002.safetensors"}, "tensor 'b', which .* leaves out"),
        (
            {
                "a": "model-00002-of-00002.safetensors",
                "b": "model-00002-of-00002.safetensors",
            },
            "puts tensor 'a' into",
        ),
        ({"c": "x"}, "names tensor 'c', which is in no shard"),
        ([], "no weight_map"),
    ],
)
def test_an_index_that_disagrees_with_the_shards_is_refused(tmp_path, weight_map, message):
    write_shards(tmp_path, weight_map)

    with pytest.raises(Problem, match=message) as caught:
        open_checkpoint(tmp_path)

    assert caught.value.code == "invalid_checkpoint"


def test_shards_without_an_index_are_refused(tmp_path):
    write_shards(tmp_path)
    (tmp_path / INDEX_NAME).unlink()

    with pytest.raises(Problem, match=r"2 \.safetensors files but no"):
        open_checkpoint(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path):
    write_shards(tmp_path)
    save_file({"a": ONE}, tmp_path / "model-00002-of-00002.safetensors")

    with pytest.raises(Problem, match="'a' stands in model-00001") as caught:
        open_checkpoint(tmp_path)

    assert caught.value.code == "duplicate_tensor"


@pytest.mark.parametrize("config", ["[]", "{", "\xff", "[" * 100_000])
def test_a_damaged_config_is_refused(tmp_path, config):
    save_file({"a": ONE}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config, encoding="latin-1")

    with pytest.raises(Problem) as caught:
        open_checkpoint(tmp_path)

    assert caught.value.code == "invalid_config"


def test_a_folder_without_tensors_is_refused(tmp_path):
    with pytest.raises(Problem, match=r"no \.safetensors file"):
        open_checkpoint(tmp_path)

    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(Problem, match="holds no tensor"):
        open_checkpoint(tmp_path)


def test_a_damaged_shard_is_named(tmp_path):
    write_shards(tmp_path)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])

    with pytest.raises(
        Problem, match=r"model-00002-of-00002.safetensors: Tensor 'b' ends"
    ) as caught:
        open_checkpoint(tmp_path)

    assert caught.value.code == "tensor_out_of_bounds"
