"""The predicted loss, against the weights themselves, reconstructed and compared one by one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.sensitivities import Rounding, Sensitivities, Variant
from planning.losses import loss_of


def measured(*variants):
    return Sensitivities(
        engine_version=1,
        variants=variants,
        seconds=0,
        predicted_peak_bytes=0,
        measured_peak_bytes=0,
    )


def variant_of(weights, rounded, width=None, group_size=None):
    found = {}
    for name, kept in weights.items():
        energy = float(np.square(kept).sum())
        error = float(np.square(kept - rounded[name]).sum())
        rmse = math.sqrt(error / energy) if energy else 0.0
        found[name] = Rounding(relative_rmse=rmse, energy=energy)
    return Variant(width=width, group_size=group_size, weights=found)


def reference(weights, artifact):
    """The root of the mean, over weights, of squared differences over squares."""
    shares = [
        np.square(weights[name] - artifact[name]).sum() / np.square(weights[name]).sum()
        for name in weights
    ]
    return math.sqrt(sum(shares) / len(shares))


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 5), kept=st.integers(1, 8))
def test_the_loss_is_that_of_the_weights_with_what_is_removed_as_zeros(seed, count, kept):
    rng = np.random.default_rng(seed)
    weights = {f"{i}.weight": rng.normal(size=(3, 8)) * 10.0**i for i in range(count)}
    left = {name: weight[:, :kept] for name, weight in weights.items()}
    whole = variant_of(weights, {name: weight.round(1) for name, weight in weights.items()})
    rounded = {name: weight.round(1) for name, weight in left.items()}
    shrunk = variant_of(left, rounded, width=0.5)
    quantized = {name for name in weights if rng.random() < 0.5}

    loss = loss_of(measured(whole, shrunk), shrunk, quantized)

    artifact = {}
    for name, weight in weights.items():
        artifact[name] = np.zeros_like(weight)
        artifact[name][:, :kept] = rounded[name] if name in quantized else left[name]
    assert loss == pytest.approx(reference(weights, artifact), rel=1e-9, abs=1e-12)


def test_what_stays_float_or_holds_nothing_but_zeros_costs_nothing():
    weights = {"a.weight": Rounding(relative_rmse=0.3, energy=5.0)}
    zeros = {"b.weight": Rounding(relative_rmse=0.0, energy=0.0)}
    variant = Variant(width=None, group_size=None, weights=weights | zeros)

    assert loss_of(measured(variant), variant, ()) == 0
    assert loss_of(measured(variant), variant, {"b.weight"}) == 0
    assert loss_of(measured(variant), variant, {"a.weight"}) == pytest.approx(0.3 / math.sqrt(2))


def test_a_weight_whose_inputs_no_group_divides_counts_as_float():
    both = {name: Rounding(relative_rmse=0.2, energy=1.0) for name in ("a.weight", "b.weight")}
    whole = Variant(width=None, group_size=None, weights=both)
    grouped = Variant(width=None, group_size=32, weights={"a.weight": both["a.weight"]})

    loss = loss_of(measured(whole, grouped), grouped, {"a.weight"})

    assert loss == pytest.approx(0.2 / math.sqrt(2))
