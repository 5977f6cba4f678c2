from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.float_kernels import KINDS
from engine.rankings import MAGNITUDE
from engine.rounding_kernels import SCRATCH_ROWS, TALLIES, round_rows
from planning.working_set import RUN

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


@dataclass
class Rounded:
    values: np.ndarray
    stored_scales: np.ndarray
    scales: np.ndarray
    zeros: float
    squared_error: float
    squares: float
    max_error_steps: float


def bits_of(weight: torch.Tensor) -> np.ndarray:
    integers = torch.int32 if weight.dtype == torch.float32 else torch.int16
    unsigned = np.uint32 if weight.dtype == torch.float32 else np.uint16
    return weight.view(integers).numpy().view(unsigned)


def round_weight(weight: torch.Tensor, dtype: str, *, before=None, group_size=None) -> Rounded:
    bits = bits_of(weight)
    original = bits if before is None else bits_of(before)
    rows, width = bits.shape
    group_size = group_size or width
    stored = np.empty(rows * width // group_size, bits.dtype)
    rounded = np.empty((rows, width), np.uint8)
    scratch, tallies = np.empty((SCRATCH_ROWS, RUN), np.uint32), np.zeros(TALLIES)
    mask = MAGNITUDE[bits.itemsize]
    round_rows(
        original, bits, before is not None, KINDS[dtype], mask, group_size, stored, 0, rounded,
        scratch, tallies,
    )  # fmt: skip
    signed = torch.from_numpy(stored.view(np.int32 if dtype == "F32" else np.int16))
    scales = signed.view(DTYPES[dtype]).float().numpy().reshape(rows, -1)
    return Rounded(rounded.view(np.int8), stored, scales, *tallies[1:])


def finite_weights(dtype: str):
    largest = 60000.0 if dtype == "F16" else 2.0**100
    return hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
        elements=st.floats(-largest, largest, width=32),
    ).map(lambda values: torch.from_numpy(values).to(DTYPES[dtype]))


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_no_weight_lies_more_than_half_a_scale_from_its_int8_value(dtype, data):
    weight = data.draw(finite_weights(dtype))

    rounded = round_weight(weight, dtype)

    exact = weight.double().numpy()
    scales = rounded.scales.astype(np.float64)
    error = np.abs(exact - rounded.values * scales)
    # The quotient is at most 128 and rounded once to float32: 128 * 2**-24 of a step.
    assert np.all(error <= scales * (0.5 + 2.0**-16))
    assert rounded.max_error_steps <= 0.5 + 2.0**-15


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_int8_values_are_the_rounded_float32_quotients(dtype, data):
    weight = data.draw(finite_weights(dtype))

    rounded = round_weight(weight, dtype)

    quotients = weight.float() / torch.from_numpy(rounded.scales)
    expected = torch.clamp(torch.round(quotients), -128, 127).to(torch.int8)
    np.testing.assert_array_equal(rounded.values, expected.numpy())
    assert rounded.zeros == np.sum(rounded.values == 0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("group_size", [16, 48, 1040, 2080])
def test_the_scale_is_the_least_of_its_dtype_that_is_not_below_amax_over_127_5(
    dtype, group_size, weights
):
    weight = weights(24, 6240, dtype=DTYPES[dtype])

    rounded = round_weight(weight, dtype, group_size=group_size)

    grouped = weight.reshape(-1, group_size)
    stored = torch.from_numpy(rounded.scales.reshape(-1)).to(DTYPES[dtype])
    exact = grouped.float().abs().amax(1) / 127.5
    below = torch.nextafter(stored, torch.zeros_like(stored)).float()
    assert torch.all(stored.float() >= exact)
    assert torch.all((below < exact) | (stored.float() == exact))
    np.testing.assert_array_equal(rounded.stored_scales, bits_of(stored))
    quotients = torch.round(grouped.float() / stored.float()[:, None]).clamp(-128, 127)
    np.testing.assert_array_equal(rounded.values.reshape(-1, group_size), quotients.numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_channel_of_zeros_has_scale_epsilon_and_comes_back_as_zeros(dtype):
    weight = torch.zeros(2, 5, dtype=DTYPES[dtype])

    rounded = round_weight(weight, dtype)

    np.testing.assert_array_equal(rounded.scales, np.full((2, 1), 2.0**-23, np.float32))
    np.testing.assert_array_equal(rounded.values, np.zeros((2, 5), np.int8))
    assert rounded.squared_error == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_smallest_weights_get_a_scale_that_is_not_zero(dtype):
    tiny = torch.finfo(DTYPES[dtype]).smallest_normal
    weight = torch.tensor([[tiny, -tiny], [tiny / 4, 0.0]], dtype=DTYPES[dtype])

    rounded = round_weight(weight, dtype)

    assert np.all(rounded.scales > 0)
    error = np.abs(weight.double().numpy() - rounded.values * rounded.scales.astype(float))
    assert np.all(error <= rounded.scales * (0.5 + 2.0**-16))


def test_every_pattern_of_a_half_precision_float_is_widened_exactly():
    patterns = np.arange(2**16, dtype=np.uint32).astype(np.uint16)
    finite = patterns[np.isfinite(patterns.view(np.float16))]
    halves = torch.from_numpy(finite.view(np.float16).reshape(1, -1).copy())

    rounded = round_weight(halves, "F16")

    assert rounded.squares == pytest.approx(np.sum(halves.double().numpy() ** 2), rel=1e-12)


def test_errors_are_measured_against_the_weights_before_pruning():
    before = torch.tensor([[1.0, -3.0, 2.0]])
    after = torch.tensor([[0.0, -3.0, 2.0]])

    rounded = round_weight(after, "F32", before=before)

    restored = rounded.values.astype(np.float64) * rounded.scales.astype(np.float64)
    expected = np.sum((before.double().numpy() - restored) ** 2)
    assert rounded.squared_error == pytest.approx(expected, rel=1e-6)
    assert rounded.squares == 14.0
    assert rounded.max_error_steps <= 0.5 + 2.0**-15


# 127.5 times the largest power of two whose 128-fold is infinite, and the largest weight.
@pytest.mark.parametrize(
    ("dtype", "weight"),
    [
        ("F16", 127.5 * 2.0**9),
        ("F16", 65504.0),
        ("BF16", 127.5 * 2.0**121),
        ("F32", 127.5 * 2.0**121),
        ("F32", float(np.finfo(np.float32).max)),
    ],
)
def test_the_largest_weights_come_back_finite_in_their_own_dtype(dtype, weight):
    largest = torch.tensor([[-weight, weight]], dtype=torch.float64).to(DTYPES[dtype])

    rounded = round_weight(largest, dtype)

    scale = torch.from_numpy(rounded.scales).to(DTYPES[dtype])
    assert torch.all(torch.isfinite(torch.from_numpy(rounded.values).to(scale.dtype) * scale))
    assert rounded.max_error_steps <= 0.5 + 2.0**-15
