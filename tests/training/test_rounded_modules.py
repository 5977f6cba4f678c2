"""Training with weights as they will be rounded, beside the artifact and plain PyTorch."""

import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - its usual name
from safetensors.torch import load_file, save_file

from engine.inspection import find_module_kinds
from engine.pipeline import compress
from evaluation.models import open_model
from evaluation.weight_files import WeightFiles
from jobs.checkpoint import open_checkpoint
from jobs.recipe import Recipe, parse_recipe
from planning.load_template import load_state_dict
from planning.plan import make_plan
from tests.training.conftest import QUIET
from training.fake_rounding import WeightRounding
from training.opening import open_trainable
from training.rounded_modules import RoundedModule, find_rounded, round_modules
from training.running import Place, finetune

W8A16 = {"op": "quantize", "scheme": "w8a16"}
W8A8 = {"op": "quantize", "scheme": "w8a8"}


@pytest.fixture
def train(tmp_path, make_step):
    """Train a folder for a rounding, round it, and give the training and both folders."""

    def run(folder, dataset, rounding, name="rounded", *, is_aware=True, **choices):
        plain = {"steps": 3, "batch_size": 8, "learning_rate": 3e-3}
        recipe = Recipe.model_construct(steps=(make_step(**plain | choices),))
        floats, artifact = tmp_path / f"{name}-floats", tmp_path / name
        place = Place(folder, folder, dataset, floats, tmp_path / f"{name}-scratch", "cpu")
        training = finetune(place, recipe, QUIET, rounding if is_aware else None)
        artifact.mkdir()
        compress(floats, artifact, rounding, on_progress=lambda _: None)
        return training, floats, artifact

    return run


def recipe_of(step, output="auto"):
    return parse_recipe({"steps": [step], "output": {"format": output}})


def answers_of_trained(floats, dataset, step, rounding, inputs):
    trained = open_trainable(floats, dataset, step, "cpu")
    trained.round_as(rounding)
    trained.module.eval()
    with torch.inference_mode():
        return trained.logits(inputs)


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("llama", W8A16),
        ("llama", W8A8),
        ("llama", {**W8A16, "group_size": 16, "exclude": ["*.mlp.*"]}),
        ("bert", {**W8A16, "embeddings": True}),
    ],
)
def test_what_is_trained_answers_to_the_bit_as_the_artifact_does(
    make_folder, token_rows, train, make_step, name, step
):
    folder, _ = make_folder(name)
    dataset, tensors = token_rows(labels=3)

    training, floats, artifact = train(folder, dataset, recipe_of(step))

    inputs = {name: values for name, values in tensors.items() if name != "labels"}
    with torch.inference_mode():
        expected = open_model(artifact)(**inputs).logits
        plain = open_model(floats)(**inputs).logits
    found = answers_of_trained(floats, dataset, make_step(), recipe_of(step), inputs)
    assert torch.equal(found, expected)
    assert not torch.equal(found, plain)
    # Heads stay float, and tied ones with their embeddings.
    assert training.quantize_aware.tensors == {"llama": 14, "bert": 16}[name] - 6 * (
        "exclude" in step
    )
    assert training.quantize_aware.rounds_inputs == (step["scheme"] == "w8a8")


def extreme(model):
    """Give rows of all sizes that a dtype has, and one of zeros."""
    for name, weight in model.named_parameters():
        if name.endswith(("query.weight", "c_attn.weight", "convolution.weight")):
            for row, size in enumerate((0, 1e-38, 1e-7, 1e-3, 6e4)):
                floats = weight[row].double()
                weight[row] = (floats * size / floats.abs().max()).to(weight.dtype)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("bert", torch.bfloat16),
        ("bert", torch.float16),
        ("bert", torch.float32),
        ("gpt2", torch.bfloat16),
        ("gpt2", torch.float16),
        ("resnet", torch.float32),
    ],
)
def test_weights_of_any_kind_and_dtype_are_what_load_py_gives(make_folder, tmp_path, dtype, kind):
    folder, _ = make_folder(kind, dtype, prepare=extreme)
    if kind == "resnet":
        # Nothing but shapes says what its weights are, which takes no look at its class.
        (folder / "config.json").unlink()
    rounding = recipe_of({**W8A16, "embeddings": kind == "bert"}, "safetensors")
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    compress(folder, artifact, rounding, on_progress=lambda _: None)
    checkpoint = open_checkpoint(folder)
    kinds = find_module_kinds(checkpoint)

    # The classes of these models name their weights as the files do.
    names = {name: name for name in checkpoint.tensors}
    rounded = find_rounded(make_plan(checkpoint, kinds, rounding), names, dtype)

    expected = load_state_dict(artifact)
    held = load_file(folder / "model.safetensors")
    changed = {n.removesuffix(".weight") for n in held if not torch.equal(held[n], expected[n])}
    assert rounded.keys() == changed
    for name, what in rounded.items():
        found = what.rounding(held[f"{name}.weight"].float())
        assert torch.equal(found, expected[f"{name}.weight"].float()), name
        assert not what.rounds_inputs


@pytest.mark.parametrize(("step", "error"), [(W8A16, 1e-5), (W8A8, 5e-3)])
def test_the_gradient_is_that_of_rounded_values_and_passes_straight_through_rounding(
    make_folder, token_rows, make_loop, step, error
):
    # A sum in another order may be rounded to another step, of which an input has few.
    folder, model = make_folder("bert")
    dataset, tensors = token_rows(labels=3)
    loop = make_loop(folder, dataset, 32)
    loop.trainable.round_as(recipe_of(step))
    inputs = {name: values for name, values in tensors.items() if name != "labels"}

    def nearest(values):
        scale = values.abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127.5
        rounded = torch.clamp(torch.round(values / scale), -128, 127) * scale
        return values + (rounded - values).detach()

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name != "classifier":
            module.forward = lambda given, linear=module: F.linear(
                nearest(given) if step is W8A8 else given, nearest(linear.weight), linear.bias
            )
    F.cross_entropy(model(**inputs).logits, tensors["labels"]).backward()

    loop._gradients(np.arange(32))

    expected = {name: p.grad for name, p in model.named_parameters()}
    assert loop.parameters.keys() == expected.keys()
    for name, parameter in loop.parameters.items():
        difference = (parameter.grad - expected[name]).norm()
        assert difference <= error * expected[name].norm() + 1e-8, name


def test_no_rounded_weight_is_kept_until_gradients_need_it():
    made = []

    def remembered(weight):
        rounded = WeightRounding("F32", torch.float32)(weight)
        made.append(weakref.ref(rounded))
        return rounded

    model = torch.nn.Sequential(*(torch.nn.Linear(8, 8) for _ in range(3)))
    what = RoundedModule(remembered, rounds_inputs=False)
    assert round_modules(model, {"0": what, "1": what, "2": what}) == 4 * 64

    loss = model(torch.ones(2, 8)).sum()
    kept = [rounded() is not None for rounded in made]
    loss.backward()

    assert kept == [False] * 3
    # Each is made again, for the gradient of what came in; the first of them has none.
    assert len(made) in (5, 6)


def test_pruned_weights_are_zero_in_the_artifact_too(make_folder, token_rows, train):
    def prune(model):
        for name, parameter in model.named_parameters():
            if "proj" in name:
                parameter[:, ::2] = 0

    folder, _ = make_folder("llama", torch.bfloat16, prepare=prune)

    training, _, artifact = train(folder, token_rows()[0], recipe_of(W8A16), weight_decay=0.1)

    files = WeightFiles(open_checkpoint(artifact))
    found = [files.read(name, torch.float32) for name in files.weights if "proj" in name]
    assert len(found) == training.quantize_aware.tensors == 14
    for weight in found:
        assert not weight[:, ::2].any()
        assert weight.any()
    assert training.weights_held_zero == sum(weight.numel() // 2 for weight in found)


def test_the_last_loss_on_held_out_rows_is_that_of_the_artifact(make_folder, token_rows, train):
    folder, _ = make_folder("llama")
    dataset, tensors = token_rows()
    choices = {"evaluate_every": 3, "evaluation_rows": 8, "steps": 6}

    training, _, artifact = train(folder, dataset, recipe_of(W8A16), **choices)

    ids, mask = (tensors[name][-8:] for name in ("input_ids", "attention_mask"))
    with torch.inference_mode():
        logits = open_model(artifact)(input_ids=ids, attention_mask=mask).logits
    targets = ids.masked_fill(mask == 0, -100)[:, 1:].flatten()
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), targets)
    assert training.looks[-1].loss == pytest.approx(loss.item(), abs=1e-6)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")
@pytest.mark.parametrize("saving", ["optimizer_in_backward", "activation_checkpointing"])
def test_what_saves_memory_changes_no_weight(make_folder, token_rows, make_loop, saving):
    folder, _ = make_folder("llama")
    dataset, _ = token_rows()
    found = []
    for savings in ((), (saving,)):
        loop = make_loop(folder, dataset, 8, batch_size=8)
        loop.trainable.round_as(recipe_of(W8A8))
        loop.setting = replace(loop.setting, savings=savings)
        if saving in savings and saving == "activation_checkpointing":
            assert loop.trainable.checkpoint_activations()
        for _ in range(3):
            loop.advance(lambda: 0)
        found.append({name: p.detach().clone() for name, p in loop.parameters.items()})

    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def counting(rows, seed):
    """Give rows of tokens that count, each by a difference of its own."""
    generator = torch.Generator().manual_seed(seed)
    starts = torch.randint(1, 60, (rows, 1), generator=generator)
    steps = torch.randint(1, 6, (rows, 1), generator=generator)
    return 1 + (starts + steps * torch.arange(16)) % 60


def loss_of(model, ids):
    logits = model(input_ids=ids).logits[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def learn(model):
    """Train a model on its own."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    ids = counting(256, 0)
    with torch.enable_grad():
        for start in range(0, 300 * 32, 32):
            optimizer.zero_grad()
            loss_of(model, ids[torch.arange(start, start + 32) % 256]).backward()
            optimizer.step()


def give_outliers(model, size=100.0):
    """Make one weight of each row far larger than others, and what it is multiplied with less.

    The model says the same; all other weights are a few steps of int8.
    """
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        layer.input_layernorm.weight[3] /= size
        layer.post_attention_layernorm.weight[3] /= size
        for name in ("q_proj", "k_proj", "v_proj"):
            getattr(attention, name).weight[:, 3] *= size
        mlp.gate_proj.weight[:, 3] *= size
        mlp.up_proj.weight[:, 3] *= size
        mlp.up_proj.weight[5] /= size
        mlp.down_proj.weight[:, 5] *= size


def test_training_makes_up_for_a_rounding_that_is_coarse(make_folder, tmp_path, train):
    def prepare(model):
        learn(model)
        give_outliers(model)

    folder, model = make_folder("llama", prepare=prepare)
    save_file({"input_ids": counting(256, 0)}, tmp_path / "counting")
    others = counting(128, 1)
    losses = {}
    for is_aware in (False, True):
        choices = {"steps": 40, "batch_size": 32, "learning_rate": 1e-3, "is_aware": is_aware}
        training, _, artifact = train(
            folder, tmp_path / "counting", recipe_of(W8A16), f"{is_aware}", **choices
        )
        assert (training.quantize_aware is not None) == is_aware
        with torch.inference_mode():
            losses[is_aware] = loss_of(open_model(artifact), others).item()

    with torch.inference_mode():
        before = loss_of(model, others).item()
    # Rounding alone undoes what training gained; here it takes nothing.
    assert losses[True] < before
    assert losses[True] < 0.9 * losses[False]
