"""What data keep of a shrunk model, beside hooks and autograd on the same model in memory."""

from collections import Counter

import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from calibration.running import calibrate
from engine.pipeline import compress
from engine.verification import verify
from engine.verified_forms import claims_of
from jobs.problems import Problem
from jobs.ranges import numbers_of
from jobs.recipe import parse_recipe

DATASET = "ds_" + "0" * 64
SMALL = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
}
QWEN = transformers.Qwen2Config(**SMALL, num_key_value_heads=4)
GPT2 = transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=3, n_head=4, n_positions=64)
BERT = transformers.BertConfig(**SMALL, num_labels=3)
#: By name: the model; of its layers, where channels and heads come in, and all that goes with them.
MODELS = {
    "qwen2": (
        transformers.Qwen2ForCausalLM,
        QWEN,
        "model.layers",
        ("mlp.down_proj", ("mlp.gate_proj", "mlp.up_proj")),
        ("self_attn.o_proj", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ),
    "gpt2": (
        transformers.GPT2LMHeadModel, GPT2, "transformer.h", ("mlp.c_proj", ("mlp.c_fc",)), None,
    ),
    "bert": (
        transformers.BertForSequenceClassification, BERT, "bert.encoder.layer",
        ("output.dense", ("intermediate.dense",)), None,
    ),
}  # fmt: skip


#: One whose heads are the same in all layers.
SHARED = {
    "t5": (
        transformers.T5EncoderModel,
        transformers.T5Config(
            vocab_size=60, d_model=32, d_kv=8, d_ff=48, num_layers=3, num_heads=4
        ),
    )
}


@pytest.fixture
def shrunk(tmp_path):
    """Have a model shrunk by data and verified; give all of it."""

    def shrink(name, importance, *more, dtype=torch.float32, spoil=lambda _: None, **members):
        torch.manual_seed(0)
        model_class, config, *_ = (MODELS | SHARED)[name]
        model = model_class(config).eval().to(dtype)
        folders = {part: tmp_path / part for part in ("model", "work", "artifact")}
        for folder in folders.values():
            folder.mkdir()
        model.save_pretrained(folders["model"])
        ids = torch.randint(60, (20, 16), generator=torch.Generator().manual_seed(1))
        mask = torch.ones_like(ids)
        mask[::2, 11:] = 0
        fields = {"input_ids": ids, "attention_mask": mask}
        if name == "bert":
            fields["labels"] = ids[:, 0] % 3
        save_file(fields, tmp_path / "data")
        step = {"op": "shrink", "width": 0.5, "importance": importance, **members}
        section = {"dataset": DATASET, "rows": 14, "batch_size": 4}
        recipe = parse_recipe({"steps": [step, *more], "calibrate": section})
        found = calibrate(
            folders["model"], tmp_path / "data", recipe, folders["work"], lambda *_: None
        )
        report = compress(
            folders["model"], folders["artifact"], recipe,
            on_progress=lambda _: None, calibrated=folders["work"],
        )  # fmt: skip
        spoil(folders["work"])
        verify(
            folders["model"], folders["artifact"], recipe, claims_of(report), report.shrunk,
            on_progress=lambda _: None, calibrated=folders["work"],
        )  # fmt: skip
        batches = [
            {name: tensor[start : min(start + 4, 14)] for name, tensor in fields.items()}
            for start in range(0, 14, 4)
        ]
        return model, batches, folders["artifact"], found, report

    return shrink


def units_in(model, name):
    """Yield what is chosen from, as reports have it: modules, layers, and how many heads."""
    _, _, path, channels, heads = MODELS[name]
    layers = list(model.get_submodule(path))
    if heads is not None:
        yield heads, layers, 4
    yield channels, layers, None


def kept_of(report):
    return [numbers_of(one.kept, one.count) for one in report.shrunk.kept]


def best(importance, count):
    return sorted(np.argsort(-importance.numpy(), kind="stable")[:count].tolist())


def units_of(values, units):
    return values.reshape(units, -1).sum(1)


def by_input(module):
    """Give a weight as [I, O], whatever kind of module has it."""
    weight = module.weight.detach().double()
    return weight if isinstance(module, transformers.pytorch_utils.Conv1D) else weight.T


def inputs_of(model, module, batches):
    kept = []
    hook = module.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    hook.remove()
    masks = [batch["attention_mask"].bool() for batch in batches]
    return torch.cat([values[mask] for values, mask in zip(kept, masks, strict=True)]).double()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", MODELS)
def test_by_activation_those_are_kept_that_add_most_to_what_comes_after(shrunk, name, dtype):
    model, batches, artifact, found, report = shrunk(name, "activation", dtype=dtype)

    expected = []
    for modules, layers, heads in units_in(model, name):
        for layer in layers:
            module = layer.get_submodule(modules[0])
            squares = inputs_of(model, module, batches).square().sum(0)
            added = units_of(squares * by_input(module).square().sum(1), heads or len(squares))
            expected.append(best(added, len(added) // 2))
    assert kept_of(report) == expected
    assert (found.rows, found.blocks) == (14, 3)
    opened = MODELS[name][0].from_pretrained(artifact)
    assert opened.num_parameters() < model.num_parameters()


def test_heads_of_all_layers_are_kept_by_what_they_add_in_all_of_them(shrunk):
    model, batches, *_, report = shrunk("t5", "activation")

    added = torch.zeros(4, dtype=torch.float64)
    for block in model.encoder.block:
        module = block.layer[0].SelfAttention.o
        squares = inputs_of(model, module, batches).square().sum(0)
        added += units_of(squares * by_input(module).square().sum(1), 4)
    shared, *channels = report.shrunk.kept
    assert shared.name == "encoder.block.*.layer.0.SelfAttention"
    assert numbers_of(shared.kept, 4) == best(added, 2)
    assert [one.unit for one in channels] == ["channels"] * 3


def loss_of(model, batch):
    logits = model(**{n: t for n, t in batch.items() if n != "labels"}).logits.float()
    if "labels" in batch:
        return torch.nn.functional.cross_entropy(logits, batch["labels"])
    mask = batch["attention_mask"].bool()
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["input_ids"][:, 1:].flatten(), reduction="none"
    )
    return losses[(mask[:, 1:] & mask[:, :-1]).flatten()].mean()


@pytest.mark.parametrize("name", MODELS)
def test_by_taylor_those_are_kept_whose_weights_times_gradients_are_largest(shrunk, name):
    model, batches, artifact, found, report = shrunk(name, "taylor")

    totals = Counter()
    for batch in batches:
        model.zero_grad()
        loss_of(model, batch).backward()
        for modules, layers, heads in units_in(model, name):
            for number, layer in enumerate(layers):
                taken = layer.get_submodule(modules[0])
                units = heads or by_input(taken).shape[0]
                total = units_of(products(taken, by_input=True), units)
                for made in map(layer.get_submodule, modules[1]):
                    total = total + units_of(products(made, by_input=False), units)
                    if made.bias is not None:
                        total = total + units_of((made.bias * made.bias.grad).abs(), units)
                totals[modules, number] += total.detach().double()
    assert kept_of(report) == [best(total, len(total) // 2) for total in totals.values()]
    assert found.blocks == 0
    MODELS[name][0].from_pretrained(artifact)


def products(module, *, by_input):
    found = (module.weight * module.weight.grad).abs()
    is_transposed = isinstance(module, transformers.pytorch_utils.Conv1D)
    return found.sum(1 if by_input == is_transposed else 0)


def test_steps_that_need_no_data_follow(shrunk):
    prune = {"op": "prune", "sparsity": 0.5}
    *_, report = shrunk("qwen2", "activation", prune, {"op": "quantize", "scheme": "w8a8"})

    assert [step.method for step in report.steps] == ["activation", "magnitude", "w8a8"]
    assert report.steps[0].bytes_read == sum(
        # One matrix for channels and one for heads, of each layer.
        4 * 32 * width for width in (48, 32) for _ in range(3)
    )  # fmt: skip


@pytest.mark.parametrize("importance", ["activation", "taylor"])
def test_a_verifier_that_finds_others_more_important_says_so(shrunk, importance):
    def spoil(work):
        for path in (work / "importance").glob("*.safetensors"):
            arrays = {n: 1 / (values + 1e-30) ** 9 for n, values in load_arrays(path).items()}
            save_arrays(arrays, path)

    with pytest.raises(Problem, match="more important") as caught:
        shrunk("qwen2", importance, spoil=spoil)

    assert caught.value.code == "invalid_artifact"


def test_gradients_need_something_that_is_right(tmp_path):
    transformers.BertModel(transformers.BertConfig(**SMALL)).save_pretrained(tmp_path / "model")
    save_file({"input_ids": torch.ones(3, 4, dtype=torch.int64)}, tmp_path / "data")
    step = {"op": "shrink", "width": 0.5, "importance": "taylor"}
    recipe = parse_recipe({"steps": [step], "calibrate": {"dataset": DATASET}})

    with pytest.raises(Problem, match="taylor needs a loss") as caught:
        calibrate(tmp_path / "model", tmp_path / "data", recipe, tmp_path / "work", lambda *_: None)

    assert caught.value.code == "invalid_dataset"
