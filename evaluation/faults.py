"""Whose fault it is where the libraries raise: what strangers upload makes them raise anything."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.problems import Problem

_MOST_QUOTED = 300
#: How torch, its libraries and C++ say that memory is used up, on the host and on a device.
_OUT_OF_MEMORY = ("not enough memory", "allocate memory", "bad_alloc", "out of memory")


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
        MemoryError: There was no memory left, which torch says in words.
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
    """Tell whether an error says that memory is used up, which torch says in words."""
    if isinstance(error, MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY)
