"""A parameter's elements in the order in which they lie in memory, so that pieces can be taken."""

from collections.abc import Iterator

import torch

#: Elements of a piece on a device, where each operation costs a launch.
_DEVICE_PIECE = 2**20
#: Elements of a piece on the host: few enough that what is computed of them stays in the cache.
_HOST_PIECE = 2**16


def flat(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Give a tensor's elements in the order in which another one's lie.

    Args:
        tensor: Of the shape of the other.
        like: Its own, where what is written to the result is to be written to the tensor.

    Returns:
        One dimension; a view, unless the tensor lies in another order or with gaps.
    """
    order = sorted(range(like.ndim), key=like.stride, reverse=True)
    return tensor.detach().permute(order).reshape(-1)


def is_dense(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor's elements lie without gaps, in whatever order of its dimensions."""
    return flat(tensor, tensor).data_ptr() == tensor.data_ptr()


def pieces(count: int, device: torch.device, multiple: int = 1) -> Iterator[slice]:
    """Divide elements into pieces of bounded size.

    Args:
        count: How many elements.
        device: Where they are.
        multiple: What every piece's size is a multiple of, but for the last one's, which is
            smaller; a power of two, at most 65,536.

    Yields:
        Where each piece lies: at most 65,536 elements on the host, 1,048,576 on a device.
    """
    size = _HOST_PIECE if device.type == "cpu" else _DEVICE_PIECE
    whole = count - count % multiple
    for start in range(0, whole, size):
        yield slice(start, min(start + size, whole))
    if whole < count:
        yield slice(whole, count)


def is_finite(parameter: torch.Tensor) -> bool:
    """Tell whether no element is NaN or infinite, a piece at a time."""
    values = flat(parameter, like=parameter)
    return all(
        bool(torch.isfinite(values[piece]).all()) for piece in pieces(len(values), values.device)
    )
