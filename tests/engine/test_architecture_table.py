"""What the table of architectures says, next to what the models' own code says."""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers
from transformers.initialization import no_init_weights
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from engine.architecture_table import make_entry
from engine.inspection import describe, find_module_kinds
from jobs.checkpoint import Checkpoint, Shard
from jobs.safetensors_header import Header, TensorSpec
from planning.architectures import find_architecture, known_kinds
from planning.module_kinds import ModuleKinds

HANDFUL = (
    "LlamaForCausalLM",
    "BertForSequenceClassification",
    "GPT2LMHeadModel",
    "T5ForConditionalGeneration",
    "CLIPModel",
)
TABLE = Path(__file__).parents[2] / "planning" / "architectures.jsonl"
ALL = [json.loads(line)["name"] for line in TABLE.read_text().splitlines()[1:]]
#: All of them at once would keep one process at work long after the others have ended.
PARTS = 8
DTYPES = {torch.float32: "F32", torch.int64: "I64", torch.bool: "BOOL", torch.uint8: "U8"}
# Members of decoders that users' configs set in many ways; a class without one ignores it.
WIDTHS = {"hidden_size": 96, "num_attention_heads": 12, "num_key_value_heads": 3, "head_dim": 8}
CHANGES = {
    "as it comes": {},
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True, "qkv_bias": False, "use_bias": True},
    "other widths": WIDTHS,
}


def config_of(name, change):
    model_class = getattr(transformers, name)
    default = json.loads(model_class.config_class().to_json_string(use_diff=False))
    return {**default, **change, "architectures": [name]}


def build(config):
    """Build a config's model as inspection does, and the header of the checkpoint it would save."""
    model_class = getattr(transformers, config["architectures"][0])
    # There are no values on the meta device, and to draw them takes a third of the time.
    with torch.device("meta"), no_init_weights():
        model = model_class(CONFIG_MAPPING[config["model_type"]].from_dict(dict(config)))
    state = model.state_dict()
    tensors = tuple(
        TensorSpec(name, DTYPES[tensor.dtype], tuple(tensor.shape), 0)
        for name, tensor in state.items()
    )
    shard = Shard("model.safetensors", Header(tensors, {}, 0))
    facts = describe(model, list(state))
    said = {**facts, **{key: frozenset(facts[key]) for key in ("merged", "named_weights")}}
    return ModuleKinds(**said), Checkpoint(Path(), (shard,), config)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("name", HANDFUL)
def test_the_table_says_what_the_models_own_code_says(name, change):
    said, checkpoint = build(config_of(name, change))

    assert known_kinds(checkpoint) == said


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("part", range(PARTS))
def test_for_every_architecture_the_table_says_what_the_models_own_code_says(part):
    names = ALL[part::PARTS]
    wrong, unknown, asked = [], [], 0
    for name in names:
        # A change that a config has anyway is none, and its model is the same one.
        build_once = cache(lambda text: build(json.loads(text)))
        for words, change in CHANGES.items():
            try:
                said, checkpoint = build_once(json.dumps(config_of(name, change)))
            except Exception:  # noqa: BLE001 - whatever a class says to a config that is none
                continue
            asked += 1
            known = known_kinds(checkpoint)
            if known is None and words in ("as it comes", "tied", "untied"):
                unknown.append((name, words))
            if known not in (None, said):
                wrong.append((name, words))

    assert wrong == []
    assert unknown == []
    assert asked > 4 * len(names)


@pytest.mark.parametrize("name", HANDFUL)
def test_the_table_is_what_making_it_again_gives(name):
    assert make_entry(getattr(transformers, name)) == find_architecture(name)


def test_a_model_that_the_table_knows_needs_no_process():
    _, checkpoint = build(config_of("BertForSequenceClassification", {}))

    kinds = find_module_kinds(checkpoint)

    assert kinds is not None
    assert kinds.peak_bytes is None


def test_a_checkpoint_without_a_config_is_not_looked_up():
    shard = Shard("model.safetensors", Header((TensorSpec("a.weight", "F32", (2, 2), 0),), {}, 0))

    assert find_module_kinds(Checkpoint(Path(), (shard,), None)) is None
