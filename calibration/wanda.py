"""Pruning by weights and activations.

Dimension key: O output channels, I inputs of each.
"""

from typing import Literal

import torch

from planning.matrices import pruned_count

#: An `int` is how many inputs make a group.
Scope = Literal["row", "tensor"] | int


def keep_mask(
    weight: torch.Tensor, input_norms: torch.Tensor, sparsity: float, scope: Scope
) -> torch.Tensor:
    """Say which weights stay.

    A weight counts as much as its magnitude times the norm of its input over all tokens: Sun et
    al., 2023, "A Simple and Effective Pruning Approach for Large Language Models",
    arXiv:2306.11695, section 3. It does not differ, but that how many go is exact and that ties
    have an order.

    Args:
        weight: [O, I], floating.
        input_norms: Euclidean norm of each input over all tokens, [I], not negative.
        sparsity: Fraction of the weights that go; not looked at where groups are compared.
        scope: Within what weights are compared: each channel, as in the paper; the whole tensor; or
            so many consecutive inputs, of which the smaller half goes.

    Returns:
        True where a weight stays, bool [O, I]. Every channel, the tensor or every group has exactly
        as many False: of equals, the first go, but the last of a group.
    """
    scores = weight.float().abs() * input_norms.float()
    if isinstance(scope, int):
        order = scores.reshape(-1, scope).argsort(dim=1, descending=True, stable=True)
        pruned = order[:, scope // 2 :]
    else:
        scores = scores if scope == "row" else scores.reshape(1, -1)
        order = scores.argsort(dim=1, stable=True)
        pruned = order[:, : pruned_count(sparsity, scores.shape[1])]
    kept = torch.ones(order.shape, dtype=torch.bool).scatter_(1, pruned, value=False)
    return kept.reshape(weight.shape)
