"""Int8 rounding of a block, symmetric, one scale per output channel.

Dimension key: C output channels, I inputs of one channel.

Scheme: Jacob et al., 2018, arXiv:1712.05877, section 2.1, with zero point 0 and the range -128 to
127; the scale is amax / 127.5 as in compressed-tensors. It differs in one place: the scale is
rounded up to its stored dtype before it is used, so the stored number is the one that was divided
by, and no weight lies more than half a step from its int8 value.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine import rounding_kernels
from engine.compilation import Bits
from engine.magnitudes import single_precision
from engine.workbench import Workbench

_STEPS = np.float32(127.5)
_SCALE_OF_ZEROS = np.finfo(np.float32).eps
#: The least scale: far below any weight that matters, and no loader flushes it to zero.
_LEAST_SCALE = {"BF16": 2.0**-126, "F16": 2.0**-24, "F32": 2.0**-126}
#: From this scale on, -128 steps are an infinity in the weight's dtype; the factor makes it a scale
#: of which every weight is a finite number of steps.
_OVERFLOWING_SCALE = {
    "BF16": (2.0**121, 1.25),
    "F16": (2.0**9, 1 + 2.0**-10),
    "F32": (2.0**121, 1 + 2.0**-22),
}


@dataclass(frozen=True)
class Rounded:
    """A block after rounding.

    Attributes:
        values: int8 values, [C, I].
        stored_scales: Bit patterns of the scales in the weight's dtype, [C].
        scales: The same scales as float32, [C].
    """

    values: npt.NDArray[np.int8]
    stored_scales: Bits
    scales: npt.NDArray[np.float32]


@dataclass(frozen=True)
class RoundingErrors:
    """How far a block is from what it was.

    Attributes:
        squared_error: Sum of squared differences to the weights before all steps.
        squares: Sum of squares of those weights.
        max_error_steps: Largest difference to the weights that were rounded, in scales.
    """

    squared_error: float
    squares: float
    max_error_steps: float


def round_block(bits: Bits, keys: Bits, dtype: str, bench: Workbench) -> Rounded:
    """Round finite weights to int8.

    Args:
        bits: Bit patterns, [C, I].
        keys: Their magnitudes, [C, I].
        dtype: Their safetensors dtype.
        bench: Where the values lie, as ``"rounded"``.

    Returns:
        The values and scales. ``values * scale`` differs from the weight by at most ``scale / 2``,
        up to float32 rounding of the quotient, and is finite in the weight's dtype. A channel of
        zeros gets the scale 2**-23.
    """
    stored, scales = _scales(keys.max(axis=1, initial=0), dtype)
    values: npt.NDArray[np.int8] = bench.take("rounded", bits.shape, np.int8)
    pattern, shift = single_precision(bits, dtype, bench, "single")
    bench.kernels.round_channels(pattern, shift, scales, values)
    return Rounded(values, stored, scales)


def rounding_errors(
    before: Bits, after: Bits, dtype: str, rounded: Rounded, bench: Workbench
) -> RoundingErrors:
    """Compare a rounded block with what it was.

    Args:
        before: Bit patterns before all steps, [C, I].
        after: Bit patterns that were rounded, [C, I].
        dtype: Their safetensors dtype.
        rounded: What came of them.
        bench: Memory for float32 copies of F16 weights.

    Returns:
        The differences.
    """
    original, shift = single_precision(before, dtype, bench, "original")
    pruned, _ = single_precision(after, dtype, bench, "single")
    return RoundingErrors(
        *rounding_kernels.rounding_errors(original, pruned, shift, rounded.scales, rounded.values)
    )


def _scales(peaks: Bits, dtype: str) -> tuple[Bits, npt.NDArray[np.float32]]:
    if dtype == "BF16":
        amax = (peaks.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif dtype == "F16":
        amax = peaks.astype(np.uint16).view(np.float16).astype(np.float32)
    else:
        amax = peaks.astype(np.uint32).view(np.float32)
    exact = np.maximum(amax / _STEPS, np.float32(_LEAST_SCALE[dtype]))
    exact[amax == 0] = _SCALE_OF_ZEROS
    limit, factor = _OVERFLOWING_SCALE[dtype]
    exact[exact >= np.float32(limit)] *= np.float32(factor)
    return _round_up(exact, dtype)


def _round_up(scales: npt.NDArray[np.float32], dtype: str) -> tuple[Bits, npt.NDArray[np.float32]]:
    if dtype == "F32":
        return scales.view(np.uint32), scales
    if dtype == "BF16":
        pattern = (scales.view(np.uint32) + np.uint32(0xFFFF)) & np.uint32(0xFFFF0000)
        return (pattern >> np.uint32(16)).astype(np.uint16), pattern.view(np.float32)
    half = scales.astype(np.float16)
    half = np.where(half < scales, np.nextafter(half, np.float16(np.inf)), half)
    return half.view(np.uint16), half.astype(np.float32)
