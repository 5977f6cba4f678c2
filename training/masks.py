"""Weights that pruning set to zero stay zero, without a mask beside them.

Momentum and weight decay bring a pruned weight back only if it ever had a gradient (sparsegpt
#17). Here it never has: before a step, gradients are set to zero wherever the weight is. Then
moments stay zero, decay multiplies zero, and each of the optimizers here adds zero.
"""

from collections.abc import Collection, Mapping

import torch

from training.pieces import flat, is_dense, pieces

#: A matrix with a smaller fraction of zeros was not pruned: some weights are zero by chance.
_LEAST_SPARSITY = 0.01


def sparse_parameters(
    parameters: Mapping[str, torch.nn.Parameter], embeddings: Collection[str] = ()
) -> dict[str, int]:
    """Find the weights that came in sparse.

    Args:
        parameters: By name, before the first step.
        embeddings: Names of those whose rows are looked up: one that is all zero is padding's, and
            not pruned.

    Returns:
        How many zeros each of them has: those with two dimensions or more of which 1 % or more, and
        not all, is exactly zero. What is all zero, as an adapter is in the beginning, is to learn.
    """
    found = {}
    for name, value in parameters.items():
        zeros = _zeros(value) if value.ndim >= 2 else 0
        padding = _zeros_of_padding(value) if zeros and name in embeddings else 0
        if zeros < value.numel() and zeros - padding >= _LEAST_SPARSITY * value.numel():
            found[name] = zeros
    return {name: zeros for name, zeros in found.items() if zeros}


def hold_zeros(parameter: torch.nn.Parameter) -> None:
    """Set the gradient to zero in place wherever the weight is exactly zero.

    Before every step, and before gradients are clipped: what is held has no part in their norm.

    Args:
        parameter: One of the sparse ones; without a gradient, nothing is done.
    """
    if parameter.grad is None:
        return
    if not is_dense(parameter.grad):
        parameter.grad = parameter.grad.clone(memory_format=torch.contiguous_format)
    gradient = flat(parameter.grad, like=parameter.grad)
    weight = flat(parameter, like=parameter.grad)
    for piece in pieces(len(weight), weight.device):
        gradient[piece].masked_fill_(weight[piece] == 0, 0)


def _zeros(parameter: torch.Tensor) -> int:
    values = flat(parameter, like=parameter)
    return sum(int((values[piece] == 0).sum()) for piece in pieces(len(values), values.device))


def _zeros_of_padding(embedding: torch.Tensor) -> int:
    """Count the zeros of rows that are all zero."""
    return sum(row.numel() for row in embedding if not bool(row.any()))
