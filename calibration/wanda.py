"""Pruning by weights and activations.

Dimension key: O output channels, I inputs of each.
"""

import torch

from planning.matrices import pruned_count


def keep_mask(
    weight: torch.Tensor, input_norms: torch.Tensor, sparsity: float, group: int | None
) -> torch.Tensor:
    """Say which weights stay.

    A weight counts as much as its magnitude times the norm of its input over all tokens: Sun et
    al., 2023, "A Simple and Effective Pruning Approach for Large Language Models",
    arXiv:2306.11695, section 3. It does not differ, but that how many go is exact and that ties
    have an order.

    Args:
        weight: [O, I], floating.
        input_norms: Euclidean norm of each input over all tokens, [I], not negative.
        sparsity: Fraction of each channel's weights that go; not looked at where there is a group.
        group: How many consecutive inputs are compared, of which the smaller half goes; None
            compares all of a channel.

    Returns:
        True where a weight stays, bool [O, I]. Every channel, or every group of it, has exactly as
        many False: of equals, the first go where a channel is compared, the last where a group is.
    """
    scores = weight.float().abs() * input_norms.float()
    if group is None:
        order = scores.argsort(dim=1, stable=True)
        pruned = order[:, : pruned_count(sparsity, weight.shape[1])]
    else:
        grouped = scores.reshape(len(weight), -1, group)
        order = grouped.argsort(dim=2, descending=True, stable=True)
        starts = torch.arange(0, weight.shape[1], group)[:, None]
        pruned = (order[..., group // 2 :] + starts).flatten(1)
    return torch.ones_like(weight, dtype=torch.bool).scatter_(1, pruned, False)
