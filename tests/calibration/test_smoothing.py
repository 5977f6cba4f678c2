"""Factors that move from activations to weights."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from calibration.smoothing import find_exponents, scaled


def test_exponents_are_the_papers_factors_rounded_to_powers_of_two_around_their_median():
    peaks = torch.tensor([1.0, 64.0, 4.0, 0.5, 1.0])
    weight = torch.ones(3, 5)

    exponents = find_exponents(peaks, [weight, 0.5 * weight], 0.5)

    factors = (peaks**0.5 / 1.0**0.5).log2()
    assert exponents.tolist() == (factors - factors.median()).round().int().tolist()
    assert exponents[1] == 3


def test_all_of_the_difference_goes_to_the_weights_or_none_of_it():
    peaks, weight = torch.tensor([1.0, 256.0, 1.0]), torch.tensor([[1.0, 1.0, 16.0]])

    assert find_exponents(peaks, [weight], 0.999).tolist() == [0, 8, 0]
    assert find_exponents(peaks, [weight], 0.001).tolist() == [0, 0, -4]


def test_inputs_that_are_always_zero_keep_their_weights():
    peaks = torch.tensor([0.0, 2.0, 32.0, 2.0])

    exponents = find_exponents(peaks, [torch.ones(1, 4)], 0.5)

    assert exponents[0] == 0
    assert exponents[2] == 2


@given(
    st.lists(st.floats(-1e4, 1e4, width=16), min_size=1, max_size=20),
    st.integers(-6, 6),
    st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_multiplying_and_dividing_by_powers_of_two_gives_the_same_bits(values, power, dtype):
    tensor = torch.tensor(values).to(dtype)
    exponents = torch.full((len(values),), power, dtype=torch.int32)

    there = scaled(tensor, exponents)

    assert torch.equal(scaled(there, -exponents), tensor)
    assert torch.equal(there.double(), tensor.double() * 2.0**power)
