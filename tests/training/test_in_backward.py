"""Steps inside the backward pass, beside steps after it."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from training.in_backward import is_exact, stepping_in_backward
from training.masks import hold_zeros, sparse_parameters
from training.optimizers import build_optimizer, optimizer_state


class Tied(nn.Module):
    """A model that takes one of its weights at its beginning and at its end."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(80, 64)
        self.inner = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.head = nn.Linear(64, 80, bias=False)
        self.head.weight = self.tokens.weight
        with torch.no_grad():
            self.inner[1].weight[::2] = 0

    def forward(self, tokens):
        hidden = self.tokens(tokens)
        for inner in self.inner:
            hidden = checkpoint(lambda x, f=inner: f(x).tanh(), hidden, use_reentrant=False)
        return self.head(hidden)


def losses(model, count):
    chance = torch.Generator().manual_seed(2)
    for _ in range(count):
        tokens = torch.randint(0, 80, (4, 9), generator=chance)
        logits = model(tokens[:, :-1]).flatten(0, 1)
        yield nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())


@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "adafactor", "sgd"])
def test_weights_and_states_are_those_of_steps_after_it_to_the_bit(make_step, optimizer):
    step = make_step(optimizer=optimizer, learning_rate=1e-2, weight_decay=0.1)
    models, states = (Tied(), Tied()), []
    for model in models:
        parameters = dict(model.named_parameters())
        sparse = {id(parameters[name]) for name in sparse_parameters(parameters)}
        trainer = build_optimizer(parameters, step, has_8bit_states=False)

        def prepare(parameter, sparse=sparse):
            if id(parameter) in sparse:
                hold_zeros(parameter)

        if model is models[0]:
            with stepping_in_backward(trainer, prepare):
                for loss in losses(model, 5):
                    loss.backward()
        else:
            for loss in losses(model, 5):
                loss.backward()
                for parameter in parameters.values():
                    prepare(parameter)
                trainer.step()
                trainer.zero_grad()
        states.append(optimizer_state(trainer, parameters))

    for name, parameter in models[0].named_parameters():
        assert torch.equal(parameter, models[1].get_parameter(name)), name
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
    assert not models[0].inner[1].weight[::2].any()


def test_no_two_gradients_are_in_memory_together_and_each_is_taken_once(make_step):
    model = Tied()
    trainer = build_optimizer(dict(model.named_parameters()), make_step(), has_8bit_states=False)
    met = []

    def prepare(parameter):
        met.append(id(parameter))
        assert [id(p) for p in model.parameters() if p.grad is not None] == [id(parameter)]

    with stepping_in_backward(trainer, prepare):
        next(losses(model, 1)).backward()

    assert sorted(met) == sorted(id(parameter) for parameter in model.parameters())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_backward_passes_give_gradients_again_afterwards_even_after_an_error(make_step):
    model = Tied()
    trainer = build_optimizer(dict(model.named_parameters()), make_step(), has_8bit_states=False)
    groups = trainer.param_groups

    def prepare(parameter):
        raise MemoryError

    with pytest.raises(MemoryError), stepping_in_backward(trainer, prepare):
        next(losses(model, 1)).backward()
    next(losses(model, 1)).backward()

    assert trainer.param_groups is groups
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_the_learning_rate_that_is_set_before_a_backward_pass_counts(make_step):
    model = Tied()
    trainer = build_optimizer(dict(model.named_parameters()), make_step(), has_8bit_states=False)
    before = model.tokens.weight.detach().clone()

    with stepping_in_backward(trainer, lambda _: None):
        trainer.param_groups[0]["lr"] = 0.0
        next(losses(model, 1)).backward()
        assert torch.equal(model.tokens.weight, before)
        trainer.param_groups[0]["lr"] = 0.1
        next(losses(model, 1)).backward()

    assert not torch.equal(model.tokens.weight, before)


def test_it_is_exact_for_one_micro_batch_that_nothing_clips(make_step):
    free, clipped = make_step(max_grad_norm=None), make_step()

    assert is_exact(free, 1)
    assert not is_exact(free, 2)
    assert not is_exact(clipped, 1)
