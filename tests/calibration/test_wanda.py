"""Pruning by weights and activations, beside the definition written as loops."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibration.wanda import keep_mask

SHAPES = st.tuples(st.integers(1, 6), st.integers(1, 5)).map(lambda s: (s[0], 8 * s[1]))


def make(shape, seed, *, ties=False):
    chance = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=chance)
    norms = torch.rand(shape[1], generator=chance) * 3
    return (weight.round(), norms.round()) if ties else (weight, norms)


@given(SHAPES, st.integers(0, 2**32), st.floats(0, 0.99), st.booleans())
def test_every_channel_loses_exactly_its_fraction_the_smallest_products_first(
    shape, seed, sparsity, ties
):
    weight, norms = make(shape, seed, ties=ties)

    kept = keep_mask(weight, norms, sparsity, "row")

    scores = (weight.abs() * norms).numpy()
    for row, mask in zip(scores, kept.numpy(), strict=True):
        # Ties go in their order, as a stable sort has them.
        pruned = np.argsort(row, kind="stable")[: round(sparsity * len(row))]
        assert np.flatnonzero(~mask).tolist() == sorted(pruned.tolist())


@pytest.mark.parametrize("group", [4, 8])
@given(shape=SHAPES, seed=st.integers(0, 2**32), ties=st.booleans())
def test_every_group_loses_its_smaller_half_the_last_among_equals(group, shape, seed, ties):
    weight, norms = make(shape, seed, ties=ties)

    kept = keep_mask(weight, norms, 0.5, group)

    scores = (weight.abs() * norms).reshape(-1, group)
    for row, mask in zip(scores.tolist(), kept.reshape(-1, group).tolist(), strict=True):
        best = sorted(range(group), key=lambda i: (-row[i], i))[: group // 2]
        assert [i for i, stays in enumerate(mask) if stays] == sorted(best)


def test_inputs_that_are_large_keep_weights_that_are_small():
    weight = torch.tensor([[0.1, 1.0, 0.2, 0.9]])

    kept = keep_mask(weight, torch.tensor([100.0, 1.0, 100.0, 1.0]), 0.5, "row")

    assert kept.tolist() == [[True, False, True, False]]


@given(SHAPES, st.integers(0, 2**32), st.floats(0, 0.99), st.booleans())
def test_a_tensor_loses_exactly_its_fraction_the_smallest_products_first(
    shape, seed, sparsity, ties
):
    weight, norms = make(shape, seed, ties=ties)

    kept = keep_mask(weight, norms, sparsity, "tensor")

    scores = (weight.abs() * norms).numpy().reshape(-1)
    pruned = np.argsort(scores, kind="stable")[: round(sparsity * len(scores))]
    assert np.flatnonzero(~kept.numpy().reshape(-1)).tolist() == sorted(pruned.tolist())
