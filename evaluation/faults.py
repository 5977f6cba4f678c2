"""Whose fault it is where the libraries raise: what strangers upload makes them raise anything."""

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

from jobs.problems import Problem

_MOST_QUOTED = 300
#: How torch, its libraries, C++ and the linker say that memory is used up, here and on a device.
_OUT_OF_MEMORY = (
    "not enough memory",
    "allocate memory",
    "bad_alloc",
    "out of memory",
    "failed to map segment",
)


@contextmanager
def blamed_on(code: str, what: str | Callable[[], str]) -> Iterator[None]:
    """Give whatever the block raises as a problem.

    Args:
        code: Of the problem: `invalid_dataset` or `evaluation_failed`.
        what: What could not be done; asked for when it is known, where it is a function.

    Yields:
        Nothing.

    Raises:
        Problem: What the block raised, if it was no `Problem` itself.
        MemoryError: There was no memory left, however that was said.
    """
    try:
        yield
    except (Problem, MemoryError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise MemoryError from error
        reason = " ".join(str(error).split())[:_MOST_QUOTED]
        said = what if isinstance(what, str) else what()
        raise Problem(code, f"{said}: {type(error).__name__}: {reason}") from error


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that memory is used up.

    torch says it in words, and so does safetensors, which raises a class of its own; the system
    says it by number where not even what a call needs, such as the reading of a folder, is left;
    and Python by the name of a library that it had no room to load.
    """
    if isinstance(error, MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    is_of_libraries = isinstance(error, RuntimeError | ImportError | SafetensorError)
    return is_of_libraries and any(words in str(error) for words in _OUT_OF_MEMORY)
