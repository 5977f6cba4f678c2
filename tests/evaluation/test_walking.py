"""Models taken through block by block, beside the same models run whole."""

import json

import pytest
import torch

from evaluation.inputs import Batch, batches_of
from evaluation.models import open_model
from evaluation.skeletons import Skeleton
from evaluation.walking import walk
from jobs.checkpoint import open_checkpoint
from jobs.problems import Problem
from jobs.recipe import Evaluate
from planning.blocks import block_of
from tests.evaluation.conftest import CONFIGS, kinds_of

ROWS = Evaluate(rows=5, batch_size=2, max_length=9)


def open_skeleton(folder):
    checkpoint = open_checkpoint(folder)
    return Skeleton(checkpoint, kinds_of(checkpoint))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_model_says_what_it_says_when_it_is_run_whole(make_folder, name):
    folder, _ = make_folder(name)
    whole, skeleton = open_model(folder), open_skeleton(folder)
    batches = list(batches_of(whole, folder, None, ROWS))
    visited, found = [], []

    walk(
        skeleton,
        batches,
        lambda block, calls: visited.append((block.name, len(calls))),
        take=lambda _, output: found.append(output),
    )

    names = dict.fromkeys(block_of(name) for name, _ in whole.named_parameters())
    assert sorted(visited) == sorted((name, 3) for name in names if name)
    with torch.inference_mode():
        for batch, output in zip(batches, found, strict=True):
            expected = whole(**batch.inputs)
            part = "logits" if "logits" in expected else "last_hidden_state"
            torch.testing.assert_close(output[part], expected[part], rtol=1e-5, atol=1e-6)


def test_one_block_is_in_memory_at_a_time_and_none_afterwards(make_folder):
    folder, model = make_folder("llama")
    skeleton = open_skeleton(folder)
    held = []

    def visit(block, _):
        held.append([b.name for b in skeleton.blocks if not is_empty(b.module)])

    walk(skeleton, list(batches_of(model, folder, None, ROWS)), visit, take=lambda *_: None)

    assert held == [["model.layers.0"], ["model.layers.1"]]
    assert all(is_empty(block.module) for block in skeleton.blocks)


def is_empty(module):
    return all(parameter.is_meta for parameter in module.parameters())


def test_a_block_that_was_changed_is_what_all_batches_are_taken_through(make_folder):
    folder, model = make_folder("bert")
    skeleton = open_skeleton(folder)
    batches = list(batches_of(model, folder, None, ROWS))
    found = []

    def visit(block, _):
        block.module.output.dense.weight.zero_()

    walk(skeleton, batches, visit, take=lambda _, output: found.append(output.last_hidden_state))

    for layer in model.encoder.layer:
        torch.nn.init.zeros_(layer.output.dense.weight)
    with torch.no_grad():
        for batch, output in zip(batches, found, strict=True):
            assert torch.equal(output, model(**batch.inputs).last_hidden_state)


def test_a_visit_may_run_its_block_as_often_as_it_likes(make_folder):
    folder, model = make_folder("llama")
    skeleton, found = open_skeleton(folder), []
    batches = list(batches_of(model, folder, None, ROWS))

    def visit(block, calls):
        for call in (*calls, *calls):
            call.repeat(block)

    walk(skeleton, batches, visit, take=lambda _, output: found.append(output.logits))

    with torch.no_grad():
        assert torch.equal(found[0], model(**batches[0].inputs, use_cache=False).logits)


def test_rows_that_a_model_does_not_take_are_said_to_be_the_reason(make_folder):
    folder, _ = make_folder("bert")
    too_long = Batch({"input_ids": torch.ones(1, 100, dtype=torch.int64)})

    with pytest.raises(Problem, match="A BertModel does not take the rows") as caught:
        walk(open_skeleton(folder), [too_long], lambda *_: None)

    assert caught.value.code == "invalid_dataset"


def test_a_folder_without_some_weight_is_refused_by_its_name(make_folder):
    folder, _ = make_folder("llama")
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(Problem, match=r"lacks 1 weights .* 'model.layers.1.mlp.up_proj.weight'"):
        open_skeleton(folder)


def test_a_layer_that_is_used_twice_is_refused(tmp_path):
    import transformers

    config = transformers.AlbertConfig(
        vocab_size=40, embedding_size=16, hidden_size=32, num_hidden_layers=3,
        num_attention_heads=4, intermediate_size=48, max_position_embeddings=64,
    )  # fmt: skip
    transformers.AlbertModel(config).save_pretrained(tmp_path)
    skeleton = open_skeleton(tmp_path)
    batch = Batch({"input_ids": torch.ones(1, 4, dtype=torch.int64)})

    with pytest.raises(Problem, match="more than once for a row"):
        walk(skeleton, [batch], lambda *_: None)


@pytest.mark.parametrize(("stored", "said"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_weights_are_held_in_the_dtype_that_the_library_would_hold_them_in(
    make_folder, stored, said
):
    folder, model = make_folder("llama")
    model.to(getattr(torch, stored)).save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": said}))
    batches, found = list(batches_of(model, folder, None, ROWS)), []

    walk(
        open_skeleton(folder), batches, lambda *_: None,
        take=lambda _, output: found.append(output.logits),
    )  # fmt: skip

    with torch.inference_mode():
        expected = open_model(folder)(**batches[0].inputs).logits
    assert found[0].dtype == expected.dtype == getattr(torch, said)
    assert torch.equal(found[0], expected)
