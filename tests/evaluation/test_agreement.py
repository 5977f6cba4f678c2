import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evaluation.agreement import AgreementSum


def outputs(rows: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


@given(
    rows=st.integers(1, 20),
    width=st.integers(1, 9),
    cut=st.integers(0, 20),
    noise=st.floats(0, 3),
)
def test_sums_over_batches_give_what_numpy_gives_over_all(rows, width, cut, noise):
    before = outputs(rows, width, 0)
    after = before + noise * outputs(rows, width, 1)
    total = AgreementSum(is_distribution=True)

    for part in (slice(0, cut), slice(cut, None)):
        if len(before[part]):
            total.add(before[part], after[part])

    a, b = before.double().numpy(), after.double().numpy()
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    p, q = (np.exp(x) / np.exp(x).sum(1, keepdims=True) for x in (a, b))
    assert total.outputs == rows
    assert total.mean_cosine == pytest.approx(cosine.mean(), abs=1e-9)
    assert total.least_cosine == pytest.approx(min(cosine.min(), 1), abs=1e-9)
    divergence = (p * np.log(p / q)).sum(1).mean()
    assert total.mean_divergence == pytest.approx(divergence, abs=1e-9)
    assert total.same_choices == (a.argmax(1) == b.argmax(1)).mean()


def test_equal_outputs_agree_wholly_also_where_they_are_zero():
    total = AgreementSum(is_distribution=True)

    total.add(torch.zeros(2, 3), torch.zeros(2, 3))

    found = total.mean_cosine, total.least_cosine, total.mean_divergence, total.same_choices
    assert found == (1, 1, 0, 1)


def test_an_output_of_zeros_agrees_with_no_other():
    total = AgreementSum(is_distribution=False)

    total.add(torch.ones(1, 3), torch.zeros(1, 3))

    assert total.mean_cosine == 0
    assert total.mean_divergence is total.same_choices is None
