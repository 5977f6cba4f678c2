"""Zeros of pruned weights, through many steps of every optimizer."""

import pytest
import torch
from torch import nn

from training.masks import hold_zeros, sparse_parameters
from training.optimizers import build_optimizer


def make_pruned(shape, sparsity, seed=0):
    chance = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=chance)
    weight[torch.rand(shape, generator=chance) < sparsity] = 0
    return nn.Parameter(weight)


def test_matrices_with_zeros_are_found_and_others_are_not():
    parameters = {
        "pruned": make_pruned((40, 50), 0.5),
        "kernel": make_pruned((8, 4, 3, 3), 0.5),
        "dense": nn.Parameter(torch.ones(40, 50)),
        "adapter": nn.Parameter(torch.zeros(40, 50)),
        "bias": make_pruned((500,), 0.5),
        "by_chance": nn.Parameter(torch.ones(40, 50)),
        "hardly": nn.Parameter(torch.ones(40, 50)),
        "empty": nn.Parameter(torch.ones(0, 50)),
    }
    with torch.no_grad():
        parameters["by_chance"].view(-1)[:19] = 0
        parameters["hardly"].view(-1)[:20] = 0

    found = sparse_parameters(parameters)

    assert found.keys() == {"pruned", "kernel", "hardly"}
    assert found["pruned"] == int((parameters["pruned"] == 0).sum())
    assert found["hardly"] == 20


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adafactor", "sgd"])
def test_the_same_weights_are_zero_after_100_steps_with_momentum_and_decay(make_step, optimizer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.Tanh(), nn.Linear(96, 64))
    before = []
    for layer in (model[0], model[2]):
        layer.weight = make_pruned(layer.weight.shape, 0.6)
        before.append(layer.weight.detach() == 0)
    parameters = dict(model.named_parameters())
    sparse = sparse_parameters(parameters)
    step = make_step(optimizer=optimizer, weight_decay=0.1, learning_rate=1e-2)
    trainer = build_optimizer(parameters, step, has_8bit_states=False)
    inputs, start = torch.randn(32, 64), model[0].weight.detach().clone()

    for _ in range(100):
        model.zero_grad()
        (model(inputs) - inputs.roll(1, 1)).square().mean().backward()
        for name in sparse:
            hold_zeros(parameters[name])
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        trainer.step()
        for layer, zeros in zip((model[0], model[2]), before, strict=True):
            assert torch.equal(layer.weight.detach() == 0, zeros)

    assert float((model[0].weight.detach() - start).abs().max()) > 0.01


def test_without_holding_them_zeros_are_lost(make_step):
    weight = make_pruned((64, 64), 0.5)
    trainer = build_optimizer({"w": weight}, make_step(), has_8bit_states=False)
    weight.grad = torch.ones_like(weight)

    trainer.step()

    assert not (weight == 0).any()


def test_only_gradients_of_zeros_change_even_those_that_are_no_numbers():
    weight = make_pruned((50, 3000), 0.5)
    weight.grad = torch.randn(50, 3000)
    expected = torch.where(weight == 0, 0, weight.grad)
    weight.grad[(weight == 0)] = torch.nan

    hold_zeros(weight)

    assert torch.equal(weight.grad, expected)


@pytest.mark.parametrize("turned", ["weight", "gradient"])
def test_weight_and_gradient_may_lie_in_different_orders(turned):
    weight = make_pruned((16, 8, 5, 5), 0.5)
    gradient = torch.randn(16, 8, 5, 5)
    expected = torch.where(weight == 0, 0, gradient)
    if turned == "weight":
        weight = nn.Parameter(weight.detach().to(memory_format=torch.channels_last))
    else:
        gradient = gradient.to(memory_format=torch.channels_last)
    weight.grad = gradient

    hold_zeros(weight)

    assert torch.equal(weight.grad, expected)


def test_a_parameter_without_a_gradient_is_left_alone():
    weight = make_pruned((16, 16), 0.5)

    hold_zeros(weight)

    assert weight.grad is None


def test_memory_for_it_is_bounded_however_large_a_weight_is(largest_tensor):
    weight = make_pruned((100, 10_000), 0.5)
    weight.grad = torch.ones_like(weight)

    with largest_tensor:
        sparse_parameters({"weight": weight})
        hold_zeros(weight)

    assert largest_tensor.nbytes <= 65_536 * 8
