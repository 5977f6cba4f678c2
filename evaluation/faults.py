"""Whose fault it is where the libraries raise: what strangers upload makes them raise anything."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.problems import Problem

_MOST_QUOTED = 300


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
        reason = " ".join(str(error).split())[:_MOST_QUOTED]
        if "allocate memory" in reason:
            raise MemoryError from error
        said = what if isinstance(what, str) else what()
        raise Problem(code, f"{said}: {type(error).__name__}: {reason}") from error
