"""How far a model's answers are from another one's that were written down beside the rows."""

import torch

#: Names of a row's fields with what was answered: classes or tokens, and logarithms of their share.
CHOICES, SHARES = "teacher_choices", "teacher_shares"


def divergence_sum(
    logits: torch.Tensor,
    choices: torch.Tensor,
    shares: torch.Tensor,
    is_target: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """Give how far a model's answers are from those that were written down.

    Args:
        logits: What it answers, [B, T, C] or [B, C].
        choices: The classes that were kept, [..., K].
        shares: The logarithms of their probabilities, [..., K].
        is_target: Which places count, [B, T] or [B].
        temperature: At which they were written down.

    Returns:
        The sum over those places of the Kullback-Leibler divergence in nats, times the temperature
        squared, as gradients shrink by that; float32.
    """
    own = (logits[is_target].float() / temperature).log_softmax(-1)
    expected = shares[is_target]
    found = own.gather(-1, choices[is_target].long())
    total = (expected.exp() * (expected - found)).sum()
    if expected.shape[-1] < own.shape[-1]:
        left = (1 - expected.exp().sum(-1)).clamp(min=1e-8)
        left_found = (1 - found.exp().sum(-1)).clamp(min=1e-8)
        total = total + (left * (left.log() - left_found.log())).sum()
    return total * temperature**2
