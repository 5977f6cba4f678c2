"""Moving what is hard to round from activations to weights, without changing what a model says.

Dimension key: O output channels, I inputs of each.
"""

from collections.abc import Sequence

import torch

#: A factor beyond these would be of an input that hardly matters, or never is anything but 0.
_MOST_EXPONENT = 12


def find_exponents(
    input_peaks: torch.Tensor, weights: Sequence[torch.Tensor], strength: float
) -> torch.Tensor:
    """Say by how much each input becomes smaller, and its weights larger.

    Xiao et al., 2022, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
    Language Models", arXiv:2211.10438, equation 4. It differs in one place: factors are powers of
    two, so that floats are multiplied without an error and the model stays the same to the bit.

    Args:
        input_peaks: The largest magnitude of each input, float32 [I].
        weights: Of all modules that are given these inputs, each [O, I].
        strength: What part of the difference goes to the weights, alpha in the paper.

    Returns:
        Exponents of two, int32 [I]: inputs are divided by 2 to them, weights multiplied.
    """
    weight_peaks = torch.stack([w.float().abs().amax(0) for w in weights]).amax(0)
    wanted = strength * input_peaks.log2() - (1 - strength) * weight_peaks.log2()
    is_known = wanted.isfinite()
    if not bool(is_known.any()):
        return torch.zeros(len(wanted), dtype=torch.int32)
    # One factor for all would change nothing, so the median stays where it is.
    wanted = torch.where(is_known, wanted - wanted[is_known].median(), 0.0)
    return wanted.round().clamp(-_MOST_EXPONENT, _MOST_EXPONENT).int()


def scaled(values: torch.Tensor, exponents: torch.Tensor) -> torch.Tensor:
    """Multiply by powers of two.

    Args:
        values: [I] or [O, I].
        exponents: [I].

    Returns:
        The products, of the same dtype; exact unless they leave its range.
    """
    return torch.ldexp(values.float(), exponents).to(values.dtype)
