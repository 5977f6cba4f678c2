"""States on the host, beside states that stay where the parameters are."""

import pytest
import torch

from training.in_backward import stepping_in_backward
from training.masks import hold_zeros
from training.offloading import room_for_states, step_by_parameter
from training.optimizers import build_optimizer, optimizer_state, state_bytes

OPTIMIZERS = ("adamw", "adamw8bit", "adafactor", "sgd")


def model_on(device):
    torch.manual_seed(0)
    # The first one's moments take a byte each where they may.
    return torch.nn.Sequential(torch.nn.Linear(64, 80), torch.nn.Linear(80, 3)).to(device)


def train(step, *, is_offloaded, device="cpu", in_backward=False):
    """Train for five steps, and give the model, its optimizer's states and where these lay."""
    model = model_on(device)
    parameters = dict(model.named_parameters())
    optimizer = build_optimizer(parameters, step, has_8bit_states=False, is_offloaded=is_offloaded)
    kept = {name: id(value) for name, value in optimizer_state(optimizer, parameters).items()}
    chance = torch.Generator().manual_seed(1)
    for _ in range(5):
        loss = model(torch.randn(16, 64, generator=chance).to(device)).square().mean()
        if in_backward:
            with stepping_in_backward(optimizer, hold_zeros):
                loss.backward()
        else:
            loss.backward()
            step_by_parameter(optimizer) if is_offloaded else optimizer.step()
            optimizer.zero_grad()
    return model, optimizer_state(optimizer, parameters), kept


@pytest.mark.parametrize("in_backward", [False, True], ids=["after", "inside"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_and_states_are_the_same_to_the_bit(make_step, optimizer, in_backward):
    step = make_step(optimizer=optimizer, learning_rate=1e-2, weight_decay=0.1)
    expected, states, _ = train(step, is_offloaded=False)

    found, offloaded, kept = train(step, is_offloaded=True, in_backward=in_backward)

    for name, parameter in expected.named_parameters():
        assert torch.equal(found.get_parameter(name), parameter), name
    assert offloaded.keys() == states.keys()
    assert all(torch.equal(offloaded[name], states[name]) for name in states)
    # What a checkpoint is read into and written from is the optimizer's own.
    travelling = [name for name, value in offloaded.items() if value.ndim]
    assert all(id(offloaded[name]) == kept[name] for name in travelling)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_room_for_states_is_no_less_than_what_comes(make_step, optimizer):
    parameters = dict(model_on("cpu").named_parameters())
    for name, parameter in parameters.items():
        built = build_optimizer(
            {name: parameter}, make_step(optimizer=optimizer), has_8bit_states=False
        )

        travelling = sum(v.nbytes for v in built.state[parameter].values() if v.ndim)

        assert travelling <= sum(room.nbytes for room in room_for_states(parameter))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_device_holds_the_states_of_one_parameter_at_most(make_step, optimizer):
    step = make_step(optimizer=optimizer, learning_rate=1e-2)
    expected, _, _ = train(step, is_offloaded=False, device="cuda")

    found, states, _ = train(step, is_offloaded=True, device="cuda")

    for name, parameter in expected.named_parameters():
        assert torch.equal(found.get_parameter(name), parameter), name
    assert not any(value.is_cuda for value in states.values() if value.ndim)
    large = {"one": torch.nn.Parameter(torch.zeros(2**22, device="cuda"))}
    before = torch.cuda.memory_allocated()
    built = build_optimizer(large, step, has_8bit_states=False, is_offloaded=True)
    assert torch.cuda.memory_allocated() - before < 2**16
    assert state_bytes(built) > 0
