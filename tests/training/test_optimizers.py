"""Optimizers that hold their states from the start, beside torch's own."""

import pytest
import safetensors.torch
import torch
from torch import nn

from training.adamw8bit import AdamW8bit
from training.optimizers import (
    build_optimizer,
    embedding_names,
    load_optimizer_state,
    optimizer_state,
    state_bytes,
)

KINDS = ["adamw", "adamw8bit", "adafactor", "sgd"]
SHAPES = {"matrix": (96, 70), "bias": (70,), "kernel": (8, 4, 3, 3), "scalar": (), "none": (0, 3)}


def make_parameters(seed=0):
    chance = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=chance)) for name, shape in SHAPES.items()
    }


def give_gradients(parameters, seed):
    chance = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=chance)


def run(optimizer, parameters, numbers):
    for number in numbers:
        give_gradients(parameters, number)
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (1 + number)
        optimizer.step()


def torchs_own(kind, parameters):
    values = [value for value in parameters.values() if value.numel()]
    return {
        "adamw": lambda: torch.optim.AdamW(values, weight_decay=0.1, fused=True),
        "sgd": lambda: torch.optim.SGD(values, momentum=0.8, weight_decay=0.1, fused=True),
        "adafactor": lambda: torch.optim.Adafactor(values, eps=(None, 1.0), weight_decay=0.1),
    }[kind]()


def built(make_step, kind, parameters, **parts):
    step = make_step(optimizer=kind, momentum=0.8, weight_decay=0.1)
    return build_optimizer(parameters, step, has_8bit_states=False, **parts)


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "sgd"])
def test_weights_are_those_of_torchs_own_optimizer_to_the_bit(make_step, kind):
    ours, theirs = make_parameters(), make_parameters()

    run(built(make_step, kind, ours), ours, range(20))
    run(torchs_own(kind, theirs), theirs, range(20))

    assert all(torch.equal(ours[name], theirs[name]) for name in SHAPES)
    assert not torch.equal(ours["matrix"], make_parameters()["matrix"])


@pytest.mark.parametrize("kind", ["adamw", "adafactor", "sgd"])
def test_states_are_those_that_torch_makes_in_its_first_step_and_zero_before_it(make_step, kind):
    ours, theirs = make_parameters(), make_parameters()

    before = optimizer_state(built(make_step, kind, ours), ours)
    lazy = torchs_own(kind, theirs)
    run(lazy, theirs, [0])

    after = optimizer_state(lazy, theirs)
    assert {name: (t.shape, t.dtype, t.stride()) for name, t in before.items()} == {
        name: (t.shape, t.dtype, t.stride()) for name, t in after.items()
    }
    assert not any(tensor.any() for tensor in before.values())


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_goes_on_from_a_file_of_its_state_ends_with_the_same_bits(
    make_step, tmp_path, kind
):
    parameters = make_parameters()
    optimizer = built(make_step, kind, parameters)
    run(optimizer, parameters, range(5))
    safetensors.torch.save_file(optimizer_state(optimizer, parameters), tmp_path / "state")
    resumed = {name: nn.Parameter(value.detach().clone()) for name, value in parameters.items()}
    run(optimizer, parameters, range(5, 12))

    second = built(make_step, kind, resumed)
    load_optimizer_state(second, resumed, safetensors.torch.load_file(tmp_path / "state"))
    run(second, resumed, range(5, 12))

    assert all(torch.equal(parameters[name], resumed[name]) for name in SHAPES)
    states, others = optimizer_state(optimizer, parameters), optimizer_state(second, resumed)
    assert states.keys() == others.keys()
    assert all(torch.equal(states[name], others[name]) for name in states)


@pytest.mark.parametrize("kind", KINDS)
def test_all_memory_of_states_is_there_before_the_first_step(make_step, kind):
    parameters = make_parameters()
    optimizer = built(make_step, kind, parameters)
    places = {n: t.data_ptr() for n, t in optimizer_state(optimizer, parameters).items()}
    before = state_bytes(optimizer)

    run(optimizer, parameters, range(3))

    assert state_bytes(optimizer) == before
    states = optimizer_state(optimizer, parameters)
    assert {name: tensor.data_ptr() for name, tensor in states.items()} == places


def test_states_take_eight_bytes_of_a_weight_and_about_two_with_a_byte_for_each_moment(make_step):
    parameters = {"weight": nn.Parameter(torch.zeros(1000, 1000))}

    taken = {kind: state_bytes(built(make_step, kind, parameters)) for kind in KINDS}

    scales = 2 * 4 * -(-1_000_000 // 256)
    assert taken == {
        "adamw": 8_000_000 + 4,
        "adamw8bit": 2_000_000 + scales + 4,
        "adafactor": 8000 + 4,
        "sgd": 4_000_000,
    }


def test_8_bit_states_can_be_turned_on_for_adamw_alone(make_step):
    parameters = make_parameters()

    optimizer = build_optimizer(parameters, make_step(), has_8bit_states=True)

    assert isinstance(optimizer, AdamW8bit)
    with pytest.raises(ValueError, match="sgd has no 8-bit states"):
        build_optimizer(parameters, make_step(optimizer="sgd"), has_8bit_states=True)


def test_embeddings_keep_moments_of_32_bits(make_step):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(100, 64)
            self.inner = nn.Linear(64, 64)
            self.head = nn.Linear(64, 100, bias=False)
            self.head.weight = self.tokens.weight

    model = Tied()
    names = embedding_names(model)
    parameters = dict(model.named_parameters())

    optimizer = built(make_step, "adamw8bit", parameters, embeddings=names)

    dtypes = {n: t.dtype for n, t in optimizer_state(optimizer, parameters).items()}
    assert names == {"tokens.weight"}
    assert dtypes["tokens.weight/exp_avg"] == torch.float32
    assert dtypes["inner.weight/exp_avg"] == torch.int8


def test_the_learning_rate_is_as_long_a_step_of_adafactor_as_of_adamw(make_step):
    lengths = []
    for kind in ("adafactor", "adamw"):
        # As small as weights are: a rate in proportion to them would hardly move them.
        weight = nn.Parameter(
            0.02 * torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
        )
        before = weight.detach().clone()
        optimizer = build_optimizer(
            {"w": weight}, make_step(optimizer=kind, learning_rate=1e-3), has_8bit_states=False
        )
        give_gradients({"w": weight}, 3)
        optimizer.step()
        lengths.append(float((weight.detach() - before).square().mean().sqrt()))

    assert lengths == pytest.approx([1e-3, 1e-3], rel=0.2)


def test_a_state_of_something_else_is_refused_and_nothing_of_it_taken(make_step):
    parameters = make_parameters()
    optimizer = built(make_step, "adamw", parameters)
    of_sgd = optimizer_state(built(make_step, "sgd", parameters), parameters)
    reshaped = dict(optimizer_state(optimizer, parameters))
    reshaped["bias/exp_avg"] = torch.ones(3)
    reshaped["matrix/exp_avg"] = torch.ones(96, 70)

    with pytest.raises(ValueError, match="are in one of them only"):
        load_optimizer_state(optimizer, parameters, of_sgd)
    with pytest.raises(ValueError, match=r"bias/exp_avg is torch.float32 of \[3\]"):
        load_optimizer_state(optimizer, parameters, reshaped)
    assert not any(t.any() for t in optimizer_state(optimizer, parameters).values())


def test_fused_steps_make_no_tensor_as_large_as_a_parameter(make_step, largest_tensor):
    parameters = {"weight": nn.Parameter(torch.zeros(500, 1000))}
    for kind in ("adamw", "sgd"):
        optimizer = built(make_step, kind, parameters)
        give_gradients(parameters, 0)
        with largest_tensor:
            optimizer.step()

    assert largest_tensor.nbytes < 1000
