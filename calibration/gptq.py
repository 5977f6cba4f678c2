"""Rounding that makes up for its own errors, from what a weight's inputs have in common.

Dimension key: O output channels, I inputs of each, N tokens.
"""

from dataclasses import dataclass

import torch

from calibration.grids import Grid

#: Added to the diagonal, as a fraction of its mean, so that there is an inverse: the paper's, or
#: more where errors of the sums are larger than that.
_DAMPINGS = (0.01, 0.1, 1.0)
#: So few columns are moved one by one.
_FEW = 32


@dataclass(frozen=True)
class Compensation:
    """What rounding one weight does to what is left of its channel, for some inputs.

    Attributes:
        hessian: Sum over all tokens of the products of inputs, X^T X, float32 [I, I].
        order: The inputs, the largest first, int64 [I].
        factor: The upper Cholesky factor of the inverse, in that order, float32 [I, I].
        damping: What was added to the diagonal for that.
    """

    hessian: torch.Tensor
    order: torch.Tensor
    factor: torch.Tensor
    damping: float

    @classmethod
    def of(cls, hessian: torch.Tensor) -> "Compensation":
        """Invert what inputs have in common; inputs that are always 0 are left alone.

        Args:
            hessian: As the attribute.

        Returns:
            What `choose_steps` needs, once for all Linears that are given these inputs.
        """
        order = hessian.diagonal().argsort(descending=True)
        ordered = hessian[order][:, order]
        diagonal = ordered.diagonal().clone()
        diagonal[diagonal == 0] = 1.0
        for share in _DAMPINGS:
            damping = share * diagonal.mean()
            ordered.diagonal().copy_(diagonal + damping)
            lower, failed = torch.linalg.cholesky_ex(ordered)
            if not failed:
                break
        # Each is as large as a layer, and is let go of before the next one is made.
        del ordered
        inverse = torch.cholesky_inverse(lower)
        del lower
        return cls(hessian, order, torch.linalg.cholesky(inverse, upper=True), float(damping))


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


def choose_steps(grid: Grid, compensation: Compensation) -> Rounding:
    """Round a weight column by column, each time moving what is left to make up for the error.

    Frantar et al., 2022, "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers", arXiv:2210.17323, section 3.3. It differs in four ways: the columns with the
    largest inputs come first, as in the authors' later code; scales are those of the weight that
    came in; one weight of each scale, its largest, stays on its nearest step so that the scale
    does; and weights that are 0 stay 0, as pruning wants.

    Args:
        grid: The weight and its steps, [O, I].
        compensation: Of its inputs.

    Returns:
        The steps. No channel's squared error over those tokens is larger than where every weight
        goes to the nearest step, as far as float32 can tell: such a channel does that.
    """
    nearest = grid.nearest()
    steps, errors = _compensate(grid, nearest, compensation)
    difference = grid.weight.float() - nearest * grid.spread(grid.scales)
    errors_of_nearest = ((difference @ compensation.hessian) * difference).sum(1)
    is_better = errors < errors_of_nearest
    return Rounding(
        torch.where(is_better[:, None], steps, nearest),
        float(torch.where(is_better, errors, errors_of_nearest).sum()),
        float(errors_of_nearest.sum()),
    )


def _compensate(
    grid: Grid, nearest: torch.Tensor, compensation: Compensation
) -> tuple[torch.Tensor, torch.Tensor]:
    """Give the steps, [O, I], and each channel's squared error over all tokens, [O]."""
    order, weight = compensation.order, grid.weight.float()
    is_fixed = grid.pinned() | (grid.weight == 0)
    columns = _Columns(
        factor=compensation.factor,
        left=_rows_of(weight, order),
        scales=_group_rows_of(grid, grid.scales, order),
        most=_group_rows_of(grid, grid.most(), order),
        fixed=_rows_of(torch.where(is_fixed, nearest, torch.nan), order),
    )
    columns.round(0, len(order))
    steps = columns.steps.T[:, order.argsort()]
    # Errors over the factor's diagonal, squared, add up to that of the damped sums.
    squares = columns.errors.square().sum(0)
    differences = weight - steps * grid.spread(grid.scales)
    return steps, squares - compensation.damping * differences.square().sum(1)


def _rows_of(values: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Give the columns of a matrix in another order, each contiguous: [O, I] to [I, O]."""
    return values.T[order].contiguous()


def _group_rows_of(grid: Grid, values: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """Do the same with values of groups, [O, G] to [I, O]; one of a channel takes no memory."""
    if values.shape[1] == 1:
        return values.T.expand(len(order), -1)
    return _rows_of(grid.spread(values), order)


class _Columns:
    """The columns of a weight while they are rounded, all [I, O] and one after the other."""

    def __init__(
        self,
        factor: torch.Tensor,
        left: torch.Tensor,
        scales: torch.Tensor,
        most: torch.Tensor,
        fixed: torch.Tensor,
    ) -> None:
        self._factor = factor
        self._left = left
        self._scales = scales
        self._most = most
        self._fixed = fixed
        self.steps = torch.empty_like(left)
        self.errors = torch.empty_like(left)

    def round(self, start: int, stop: int) -> None:
        """Round some columns, given that those before have been and have moved these.

        Halves of many are rounded one after the other, so that most of the moving is products of
        matrices, as in the paper's lazy batches.
        """
        if stop - start > _FEW:
            middle = (start + stop) // 2
            self.round(start, middle)
            moved = self._factor[start:middle, middle:stop].T
            self._left[middle:stop].addmm_(moved, self.errors[start:middle], alpha=-1)
            self.round(middle, stop)
            return
        for i in range(start, stop):
            column, scales, most, fixed = (
                part[i] for part in (self._left, self._scales, self._most, self._fixed)
            )
            rounded = torch.minimum(torch.maximum((column / scales).round_(), -most), most)
            self.steps[i] = torch.where(fixed.isnan(), rounded, fixed)
            self.errors[i] = (column - self.steps[i] * scales) / self._factor[i, i]
            following = slice(i + 1, stop)
            self._left[following].addr_(self._factor[i, following], self.errors[i], alpha=-1)
