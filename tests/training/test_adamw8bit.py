"""AdamW with a byte for each moment, beside torch's, which has four."""

import math

import pytest
import torch
from torch import nn

from training.adamw8bit import BLOCK, AdamW8bit


def make_weight(shape, seed=0):
    return nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))


def run(optimizer, weight, gradients):
    for gradient in gradients:
        weight.grad = gradient.clone()
        optimizer.step()


def gradients_of(shape, count, seed=1):
    chance = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=chance) for _ in range(count)]


def held(optimizer, weight):
    """The moments that a state stands for, by the definition."""
    state = optimizer.state[weight]
    moments = []
    for name, most in (("exp_avg", 127), ("exp_avg_sq", 255)):
        codes = state[name].double()
        scales = state[f"{name}_scale"].double().repeat_interleave(BLOCK)[: len(codes)]
        moments.append(codes.sign() * scales * (codes.abs() / most) ** 4)
    return moments


@pytest.mark.parametrize("shape", [(64, 64), (70, 99), (3, 70_001)])
def test_the_first_step_is_that_of_adamw(shape):
    ours, theirs = make_weight(shape), make_weight(shape)
    gradients = gradients_of(shape, 1)

    run(AdamW8bit([ours], lr=0.1, weight_decay=0.3), ours, gradients)
    run(torch.optim.AdamW([theirs], lr=0.1, weight_decay=0.3, foreach=False), theirs, gradients)

    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("whole", [False, True])
def test_weights_whose_moments_have_32_bits_are_those_of_adamw(whole):
    shape = (128, 64) if whole else (63, 65)  # 4,095 elements, one less than has a byte each.
    ours, theirs = make_weight(shape), make_weight(shape)
    gradients = gradients_of(shape, 60)

    optimizer = AdamW8bit([ours], lr=0.01, weight_decay=0.1, whole=[ours] if whole else [])
    run(optimizer, ours, gradients)
    run(torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, foreach=False), theirs, gradients)

    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert optimizer.state[ours]["exp_avg"].dtype == torch.float32


def test_a_moment_lies_within_a_code_of_what_it_was_and_a_blocks_largest_is_exact():
    weight = make_weight((50, 100))
    gradient = gradients_of((50, 100), 1)[0]
    # Blocks of all sizes, and one of zeros.
    gradient *= torch.logspace(-12, 3, 50).unsqueeze(1)
    gradient.view(-1)[:BLOCK] = 0
    optimizer = AdamW8bit([weight])

    run(optimizer, weight, [gradient])

    flat = gradient.view(-1).double()
    for found, true, most in zip(
        held(optimizer, weight), (flat * 0.1, flat.square() * 0.001), (127, 255), strict=True
    ):
        for block in range(0, 5000, BLOCK):
            one, other = found[block : block + BLOCK], true[block : block + BLOCK]
            peak = other.abs().max()
            if peak == 0:
                assert not one.any()
                continue
            codes = most * (other.abs() / peak) ** 0.25
            assert (most * (one.abs() / peak) ** 0.25 - codes).abs().max() < 1.001
            assert (one * other >= 0).all()
            assert float(one[other.abs().argmax()].abs()) == pytest.approx(float(peak), rel=1e-6)


def test_codes_round_up_as_often_as_they_should_in_256_steps():
    # Gradients that never change keep moments where they are once those have come there.
    weight = make_weight((4096,))
    gradient = gradients_of((4096,), 1)[0]
    optimizer = AdamW8bit([weight], lr=0.0, betas=(0.0, 0.0))
    sums = torch.zeros(4096, dtype=torch.float64)
    for _ in range(256):
        run(optimizer, weight, [gradient])
        sums += optimizer.state[weight]["exp_avg"].double().abs()

    peaks = gradient.view(-1, BLOCK).abs().amax(1).repeat_interleave(BLOCK)
    codes = 127 * (gradient.abs() / peaks).double() ** 0.25
    torch.testing.assert_close(sums / 256, codes, rtol=0, atol=1 / 256 + 1e-4)


def test_second_moments_follow_gradients_that_change_slowly():
    # The nearest code would be the same for ever: a step changes a moment by a thousandth.
    weight = make_weight((8192,))
    optimizer = AdamW8bit([weight], lr=0.0)
    chance = torch.Generator().manual_seed(4)
    sizes = torch.rand(8192, generator=chance) + 0.5
    exact = torch.zeros(8192, dtype=torch.float64)
    for _ in range(1500):
        gradient = sizes * torch.randn(8192, generator=chance)
        exact = 0.999 * exact + 0.001 * gradient.double().square()
        run(optimizer, weight, [gradient])

    ratio = held(optimizer, weight)[1] / exact
    assert float(ratio.mean()) == pytest.approx(1, abs=0.03)
    assert float(ratio.std()) < 0.2


def test_a_weight_with_small_gradients_beside_large_ones_is_not_thrown_away():
    # Its second moment is 1e-14 of its neighbours', and it is divided by the root of that.
    ours, theirs = make_weight((4096,)), make_weight((4096,))
    gradients = gradients_of((4096,), 30)
    for number, gradient in enumerate(gradients):
        gradient[::2] *= 1e-7 * (number % 3 == 0)
    before = ours.detach().clone()

    run(AdamW8bit([ours], lr=1e-3), ours, gradients)
    run(torch.optim.AdamW([theirs], lr=1e-3), theirs, gradients)

    moved, expected = ((w.detach() - before).abs().max() for w in (ours, theirs))
    assert float(moved) <= 1.5 * float(expected)


def test_changes_of_100_steps_differ_little_from_those_of_adamw():
    ours, theirs = make_weight((64, 256)), make_weight((64, 256))
    before = ours.detach().clone()
    chance = torch.Generator().manual_seed(6)
    sizes = torch.exp(0.5 * torch.randn(64, 256, generator=chance))
    slopes = 0.3 * torch.randn(64, 256, generator=chance)
    gradients = [sizes * (gradient + slopes) for gradient in gradients_of((64, 256), 100)]

    run(AdamW8bit([ours], lr=1e-3), ours, gradients)
    run(torch.optim.AdamW([theirs], lr=1e-3, weight_decay=0.0), theirs, gradients)

    change, expected = ours.detach() - before, theirs.detach() - before
    assert float((change - expected).norm() / expected.norm()) < 0.05
    assert float(change.norm() / expected.norm()) == pytest.approx(1, abs=0.01)


def test_memory_beside_the_states_is_bounded_however_large_a_parameter_is(largest_tensor):
    weight = make_weight((1, 1_000_003))
    optimizer = AdamW8bit([weight])
    weight.grad = torch.ones_like(weight)

    with largest_tensor:
        optimizer.step()

    assert largest_tensor.nbytes <= 65_536 * 4


def test_equal_gradients_give_equal_bits():
    weights = [make_weight((300, 300)) for _ in range(2)]
    for weight in weights:
        run(AdamW8bit([weight], weight_decay=0.1), weight, gradients_of((300, 300), 5))

    assert torch.equal(*weights)


def test_a_parameter_in_another_order_of_dimensions_is_stepped_in_place():
    plain, turned = make_weight((16, 16, 5, 5)), make_weight((16, 16, 5, 5))
    turned = nn.Parameter(turned.detach().to(memory_format=torch.channels_last))
    gradients = gradients_of((16, 16, 5, 5), 1)

    # Its gradient lies as the first one does.
    run(AdamW8bit([turned], lr=0.1), turned, gradients)
    run(AdamW8bit([plain], lr=0.1), plain, gradients)

    torch.testing.assert_close(turned, plain, rtol=1e-6, atol=1e-7)
    assert turned.is_contiguous(memory_format=torch.channels_last)


def test_a_parameter_with_gaps_is_refused():
    with pytest.raises(ValueError, match=r"\[64, 64\] has gaps"):
        AdamW8bit([nn.Parameter(torch.zeros(64, 1).expand(64, 64))])


def test_a_parameter_without_a_gradient_stays_and_counts_no_step():
    weight = make_weight((64, 64))
    optimizer = AdamW8bit([weight], weight_decay=0.5)

    optimizer.step()

    assert torch.equal(weight, make_weight((64, 64)))
    assert int(optimizer.state[weight]["step"]) == 0


def test_bfloat16_weights_are_changed_by_what_float32_ones_are():
    weight = nn.Parameter(make_weight((64, 64)).detach().bfloat16())
    reference = nn.Parameter(weight.detach().float())
    gradients = [gradient.bfloat16() for gradient in gradients_of((64, 64), 1)]

    run(AdamW8bit([weight], lr=0.1), weight, gradients)
    run(AdamW8bit([reference], lr=0.1), reference, [gradient.float() for gradient in gradients])

    torch.testing.assert_close(weight.float(), reference.detach(), rtol=2**-7, atol=0)


def make_language(seed):
    """Rows of numbers of which each follows from the two before it, but for some chance."""
    chance = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 32, (256, 12), generator=chance)
    noise = torch.rand(rows.shape, generator=chance) < 0.1
    for place in range(2, 12):
        follows = (3 * rows[:, place - 1] + rows[:, place - 2]) % 32
        rows[:, place] = torch.where(noise[:, place], rows[:, place], follows)
    return rows


def train(make_optimizer, seed=0):
    """The mean loss of the last of 120 steps of a small transformer."""
    torch.manual_seed(seed)
    layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
    model = nn.ModuleList(
        [nn.Embedding(32, 64), nn.TransformerEncoder(layer, 1), nn.Linear(64, 32)]
    )
    optimizer = make_optimizer(model.parameters())
    rows, mask = make_language(7), nn.Transformer.generate_square_subsequent_mask(11)
    losses = []
    for number in range(120):
        batch = rows[torch.arange(32).add(32 * number).remainder(256)]
        hidden = model[1](model[0](batch[:, :-1]), mask=mask, is_causal=True)
        loss = nn.functional.cross_entropy(model[2](hidden).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return sum(losses[-20:]) / 20


def test_a_small_transformer_learns_as_with_adamw():
    eight = train(lambda parameters: AdamW8bit(parameters, lr=2e-3, weight_decay=0.01))
    thirty_two = train(lambda p: torch.optim.AdamW(p, lr=2e-3, weight_decay=0.01))

    assert thirty_two < 0.8 * math.log(32)
    assert eight == pytest.approx(thirty_two, rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_device_gives_what_the_host_gives():
    ours, theirs = make_weight((300, 300)), nn.Parameter(make_weight((300, 300)).detach().cuda())
    gradients = gradients_of((300, 300), 10)

    run(AdamW8bit([ours], lr=0.01), ours, gradients)
    run(AdamW8bit([theirs], lr=0.01), theirs, [gradient.cuda() for gradient in gradients])

    torch.testing.assert_close(theirs.detach().cpu(), ours.detach(), rtol=1e-4, atol=1e-4)
