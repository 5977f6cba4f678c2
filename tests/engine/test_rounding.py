import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from engine.magnitudes import keys_of
from engine.rounding import round_block, rounding_errors
from engine.workbench import Workbench

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def bits_of(weight: torch.Tensor) -> np.ndarray:
    integers = torch.int32 if weight.dtype == torch.float32 else torch.int16
    unsigned = np.uint32 if weight.dtype == torch.float32 else np.uint16
    return weight.view(integers).numpy().view(unsigned)


def round_weight(weight: torch.Tensor, dtype: str):
    bench = Workbench()
    bits = bits_of(weight)
    rounded = round_block(bits, keys_of(bits, bench), dtype, bench)
    errors = rounding_errors(bits, bits, dtype, rounded, bench)
    return rounded, errors


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

    rounded, errors = round_weight(weight, dtype)

    exact = weight.double().numpy()
    scales = rounded.scales.astype(np.float64)[:, None]
    error = np.abs(exact - rounded.values * scales)
    # The quotient is at most 128 and rounded once to float32: 128 * 2**-24 of a step.
    assert np.all(error <= scales * (0.5 + 2.0**-16))
    assert errors.max_error_steps <= 0.5 + 2.0**-15


@pytest.mark.parametrize("dtype", DTYPES)
@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_int8_values_are_the_rounded_float32_quotients(dtype, data):
    weight = data.draw(finite_weights(dtype))

    rounded, _ = round_weight(weight, dtype)

    quotients = weight.float() / torch.from_numpy(rounded.scales)[:, None]
    expected = torch.clamp(torch.round(quotients), -128, 127).to(torch.int8)
    np.testing.assert_array_equal(rounded.values, expected.numpy())


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_scale_is_the_least_of_its_dtype_that_is_not_below_amax_over_127_5(dtype, weights):
    weight = weights(64, 33, dtype=DTYPES[dtype])

    rounded, _ = round_weight(weight, dtype)

    stored = torch.from_numpy(rounded.scales).to(DTYPES[dtype])
    exact = weight.float().abs().amax(1) / 127.5
    below = torch.nextafter(stored, torch.zeros_like(stored)).float()
    assert torch.all(stored.float() >= exact)
    assert torch.all((below < exact) | (stored.float() == exact))
    np.testing.assert_array_equal(rounded.stored_scales, bits_of(stored))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_channel_of_zeros_has_scale_epsilon_and_comes_back_as_zeros(dtype):
    weight = torch.zeros(2, 5, dtype=DTYPES[dtype])

    rounded, errors = round_weight(weight, dtype)

    np.testing.assert_array_equal(rounded.scales, np.full(2, 2.0**-23, np.float32))
    np.testing.assert_array_equal(rounded.values, np.zeros((2, 5), np.int8))
    assert errors.squared_error == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_smallest_weights_get_a_scale_that_is_not_zero(dtype):
    tiny = torch.finfo(DTYPES[dtype]).smallest_normal
    weight = torch.tensor([[tiny, -tiny], [tiny / 4, 0.0]], dtype=DTYPES[dtype])

    rounded, _ = round_weight(weight, dtype)

    assert np.all(rounded.scales > 0)
    error = np.abs(weight.double().numpy() - rounded.values * rounded.scales[:, None].astype(float))
    assert np.all(error <= rounded.scales[:, None] * (0.5 + 2.0**-16))


def test_errors_are_measured_against_the_weights_before_pruning():
    before = torch.tensor([[1.0, -3.0, 2.0]])
    after = torch.tensor([[0.0, -3.0, 2.0]])
    bench = Workbench()
    bits = bits_of(after)
    rounded = round_block(bits, keys_of(bits, bench), "F32", bench)

    errors = rounding_errors(bits_of(before), bits, "F32", rounded, bench)

    restored = rounded.values.astype(np.float64) * rounded.scales.astype(np.float64)[:, None]
    expected = np.sum((before.double().numpy() - restored) ** 2)
    assert errors.squared_error == pytest.approx(expected, rel=1e-6)
    assert errors.squares == 14.0
    assert errors.max_error_steps <= 0.5 + 2.0**-15


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

    rounded, errors = round_weight(largest, dtype)

    scale = torch.from_numpy(rounded.scales).to(DTYPES[dtype])
    assert torch.all(torch.isfinite(torch.from_numpy(rounded.values).to(scale.dtype) * scale))
    assert errors.max_error_steps <= 0.5 + 2.0**-15
