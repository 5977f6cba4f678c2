"""What measuring a model finds, against plain numpy and against what jobs do to it."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from engine.sensitivities import measure
from jobs.problems import Problem
from jobs.recipe import Budget
from planning.losses import loss_of

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "tie_word_embeddings": False,
}
SHAPES = {
    "self_attn.q_proj": (64, 64),
    "self_attn.k_proj": (32, 64),
    "self_attn.v_proj": (32, 64),
    "self_attn.o_proj": (64, 64),
    "mlp.gate_proj": (96, 64),
    "mlp.up_proj": (96, 64),
    "mlp.down_proj": (64, 96),
}


@pytest.fixture
def plain(save_model, weights):
    return save_model(
        {
            "fc.weight": weights(48, 64, seed=1),
            "embed_tokens.weight": weights(40, 64, seed=2),
            "odd.weight": weights(8, 30, seed=3),
            "fc.bias": weights(48),
        }
    )


@pytest.fixture
def llama(save_model, weights):
    tensors = {
        "model.embed_tokens.weight": weights(128, 64, seed=90),
        "lm_head.weight": weights(128, 64, seed=91),
        "model.norm.weight": weights(64, seed=92),
    }
    for layer in range(2):
        for i, (name, shape) in enumerate(SHAPES.items()):
            tensor = weights(*shape, seed=10 * layer + i)
            # Channels differ, so that it matters which of them are kept.
            tensor *= torch.linspace(0.2, 3, shape[0])[:, None]
            tensors[f"model.layers.{layer}.{name}.weight"] = tensor
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = weights(64, seed=93)
    return save_model(tensors, LLAMA)


def measured(folder, **budget):
    return measure(folder, Budget(**budget), on_progress=lambda _: None, threads=2)


def reference(weight, group_size):
    """Relative RMSE of symmetric int8 with amax / 127.5 as the scale of each group of inputs."""
    rows = weight.double().numpy().reshape(-1, group_size or weight.shape[1])
    scale = np.abs(rows).max(axis=1, keepdims=True) / 127.5
    rounded = np.clip(np.round(rows / scale), -128, 127) * scale
    return math.sqrt(np.square(rows - rounded).sum() / np.square(rows).sum())


def test_errors_are_those_of_rounding_with_each_size_of_groups(plain):
    found = measured(plain)

    tensors = load_file(plain / "model.safetensors")
    names = {
        None: {"fc.weight", "embed_tokens.weight", "odd.weight"},
        128: {"embed_tokens.weight"},
        32: {"fc.weight", "embed_tokens.weight"},
    }
    assert {(v.width, v.group_size) for v in found.variants} == {(None, g) for g in names}
    for variant in found.variants:
        assert variant.weights.keys() == names[variant.group_size]
        for name, weight in variant.weights.items():
            # Each row of an embedding has a scale of its own, whatever the groups.
            size = None if name == "embed_tokens.weight" else variant.group_size
            assert weight.relative_rmse == pytest.approx(reference(tensors[name], size), rel=1e-3)
            energy = float(tensors[name].double().square().sum())
            assert weight.energy == pytest.approx(energy, rel=1e-6)


def test_a_jobs_own_trial_finds_the_same_errors(llama, press):
    found = measured(llama)

    step = {"op": "quantize", "scheme": "w8a16", "group_size": 32, "max_relative_rmse": 1.0}
    report = press(llama, step).report

    weights = found.find(None, 32).weights
    assert len(report.sensitivity) == 14
    for one in report.sensitivity:
        assert one.relative_rmse == pytest.approx(weights[one.name].relative_rmse, rel=1e-9)


def test_the_loss_of_smaller_layers_is_that_of_the_artifact_with_zeros_for_the_rest(llama, press):
    found = measured(llama)

    pressed = press(llama, {"op": "shrink", "width": 0.5}, {"op": "quantize", "scheme": "w8a16"})

    variant = found.find(0.5, None)
    quantized = {t.name for t in pressed.report.tensors if t.after.dtype == "I32"}
    before = load_file(llama / "model.safetensors")
    shares = []
    for name in found.whole.weights:
        squares = float(before[name].double().square().sum())
        report = next((t for t in pressed.report.tensors if t.name == name), None)
        if report is None:
            shares.append(0.0)
            continue
        kept = variant.weights[name].energy
        shares.append((squares - kept + kept * report.relative_rmse**2) / squares)
    measured_loss = math.sqrt(sum(shares) / len(shares))
    assert len(quantized) == 14
    assert loss_of(found, variant, quantized) == pytest.approx(measured_loss, rel=1e-6)
    floats = press(llama, {"op": "shrink", "width": 0.5}).tensors
    for name, weight in variant.weights.items():
        energy = float(floats[name].double().square().sum())
        assert weight.energy == pytest.approx(energy, rel=1e-6)


def test_progress_is_told_as_one_step_for_every_way(llama):
    told = []

    measure(llama, Budget(), on_progress=told.append, threads=1)

    assert {one.phase for one in told} == {"measure"}
    assert {one.steps for one in told} == {6}
    # No weight has inputs that 128 divides but embeddings, which have a scale for each row.
    assert {one.step for one in told} == {1, 2, 3, 4, 5, 6}


def test_what_cannot_be_measured_is_refused(save_model, weights, plain):
    broken = weights(8, 8)
    broken[3, 3] = float("nan")

    with pytest.raises(Problem, match=r"non_finite_weight.*fc\.weight"):
        measured(save_model({"fc.weight": broken}, name="broken"))
    with pytest.raises(Problem, match="nothing_changed"):
        measured(save_model({"fc.bias": weights(8)}, name="bare"))
    with pytest.raises(Problem, match="memory_budget_exceeded"):
        measured(plain, host_memory=1000)
