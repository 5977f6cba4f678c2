import pytest

from planning.matrices import pruned_count


@pytest.mark.parametrize(
    ("sparsity", "elements", "expected"),
    [
        (0.5, 3, 2),
        (0.5, 5, 2),
        (0.3, 10, 3),
        (0.99, 100, 99),
        (0.0, 7, 0),
        (0.35, 10, 4),
        (1e-7, 10, 0),
    ],
)
def test_the_pruned_count_is_the_nearest_integer_ties_to_even(sparsity, elements, expected):
    assert pruned_count(sparsity, elements) == expected
