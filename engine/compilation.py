"""How a loop is compiled: with explicit signatures, once, into numba's cache."""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
import numpy.typing as npt

#: Bit patterns of weights, or integers that rank them.
Bits = npt.NDArray[np.unsignedinteger[Any]]
Bytes = npt.NDArray[np.uint8]
Singles = npt.NDArray[np.float32]
Tallies = npt.NDArray[np.float64]
Integer = int | np.integer[Any]
Real = float | np.floating[Any]
Counts = npt.NDArray[np.int64]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def kernel(*signatures: str, reorder_sums: bool = False) -> Callable[[_Function], _Function]:
    """Compile a function for the given signatures as soon as it is defined.

    The machine code is cached beside the source, or in the user's cache where that cannot be
    written, so only the first import on a machine pays for the compiler; where neither can be
    written, every import does. No kernel holds the GIL, and none allocates memory: one that would
    does not compile.

    Args:
        *signatures: numba signatures, one for every combination of types.
        reorder_sums: Let sums be taken in another order, which is faster. For figures of the
            report only: what is written to a file must not depend on it.

    Returns:
        The decorator.
    """
    options: dict[str, Any] = {
        "nopython": True,
        "nogil": True,
        # Without numba's allocator nobody counts the references to slices, which took half of the
        # time of rounding.
        "_nrt": False,
        "error_model": "numpy",
        "fastmath": {"reassoc", "nsz", "contract"} if reorder_sums else set(),
    }

    def compile_now(function: _Function) -> _Function:
        try:
            compiled = numba.jit(list(signatures), cache=True, **options)(function)
        except RuntimeError as error:
            if "no locator available" not in str(error):
                raise
            compiled = numba.jit(list(signatures), **options)(function)
        return cast("_Function", compiled)

    return compile_now
