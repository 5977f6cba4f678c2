"""Rounding that makes up for its own errors, from what a weight's inputs have in common.

Dimension key: O output channels, I inputs of each, N tokens.
"""

from dataclasses import dataclass

import torch

from calibration.grids import Grid

#: Added to the diagonal, as a fraction of its mean, so that there is an inverse: the paper's, or
#: more where errors of the sums are larger than that.
_DAMPINGS = (0.01, 0.1, 1.0)
_COLUMNS = 128


@dataclass(frozen=True)
class Rounding:
    """Steps, and how far what they give for the same inputs is off.

    Attributes:
        steps: Whole numbers from -128 to 127, float32 [O, I].
        squared_error: Of the outputs over all tokens.
        squared_error_of_nearest: The same where every weight goes to the nearest step.
    """

    steps: torch.Tensor
    squared_error: float
    squared_error_of_nearest: float


def choose_steps(grid: Grid, hessian: torch.Tensor) -> Rounding:
    """Round a weight column by column, each time moving what is left to make up for the error.

    Frantar et al., 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers", arXiv:2210.17323, section 3.3. It differs in four ways: the columns with the
    largest inputs come first, as in the authors' later code; scales are those of the weight that
    came in; one weight of each scale, its largest, stays on its nearest step so that the scale
    does; and weights that are 0 stay 0, as pruning wants.

    Args:
        grid: The weight and its steps, [O, I].
        hessian: Sum over all tokens of the products of inputs, X^T X, float32 [I, I].

    Returns:
        The steps. No channel's squared error over those tokens is larger than where every weight
        goes to the nearest step: such a channel does that.
    """
    nearest, weight = grid.nearest(), grid.weight.float()
    steps = _compensate(grid, nearest, hessian)
    scales = grid.spread(grid.scales)
    errors = _squared_errors(weight - steps * scales, hessian)
    errors_of_nearest = _squared_errors(weight - nearest * scales, hessian)
    is_better = errors < errors_of_nearest
    return Rounding(
        torch.where(is_better[:, None], steps, nearest),
        float(torch.where(is_better, errors, errors_of_nearest).sum()),
        float(errors_of_nearest.sum()),
    )


def _compensate(grid: Grid, nearest: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    order = hessian.diagonal().argsort(descending=True)
    left = grid.weight.float()[:, order]
    is_fixed = (grid.pinned() | (grid.weight == 0))[:, order]
    fixed, scales = nearest[:, order], grid.spread(grid.scales)[:, order]
    most = grid.spread(grid.most())[:, order]
    factor = _inverse_factor(hessian[order][:, order])
    steps = torch.empty_like(left)
    for start in range(0, left.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        steps[:, part], errors = _round_columns(
            left[:, part], factor[part, part], scales[:, part], most[:, part],
            torch.where(is_fixed[:, part], fixed[:, part], torch.nan),
        )  # fmt: skip
        rest = slice(start + _COLUMNS, None)
        left[:, rest] -= errors @ factor[part, rest]
    return steps[:, order.argsort()]


def _round_columns(
    left: torch.Tensor,
    factor: torch.Tensor,
    scales: torch.Tensor,
    most: torch.Tensor,
    fixed: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round some columns, and give the error that each leaves for the columns after them."""
    # A column is contiguous where it is a row.
    left, scales, most, fixed = (tensor.T.contiguous() for tensor in (left, scales, most, fixed))
    steps, errors = torch.empty_like(left), torch.empty_like(left)
    for i, column in enumerate(left):
        rounded = torch.minimum(torch.maximum((column / scales[i]).round_(), -most[i]), most[i])
        steps[i] = torch.where(fixed[i].isnan(), rounded, fixed[i])
        errors[i] = (column - steps[i] * scales[i]) / factor[i, i]
        left[i + 1 :] -= factor[i, i + 1 :, None] * errors[i]
    return steps.T, errors.T


def _inverse_factor(hessian: torch.Tensor) -> torch.Tensor:
    """Give the upper Cholesky factor of the inverse, with inputs that are always 0 left alone."""
    diagonal = hessian.diagonal().clone()
    diagonal[diagonal == 0] = 1.0
    for damping in _DAMPINGS:
        hessian.diagonal().copy_(diagonal + damping * diagonal.mean())
        lower, failed = torch.linalg.cholesky_ex(hessian)
        if not failed:
            break
    inverse = torch.cholesky_inverse(lower)
    del lower
    factor: torch.Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _squared_errors(difference: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    return ((difference @ hessian) * difference).sum(1)
