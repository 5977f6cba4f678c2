"""Readers of plain JSON values, each of which gives back what it knows and refuses the rest.

What they give is written again, so that nothing reaches torch but what was looked at: no member
that is not known, and no second one of the same name.
"""

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from jobs.problems import Problem

#: Takes a value and where it stands.
Reader = Callable[[Any, str], Any]
_LARGEST = 2**63
#: How json writes floats that JSON has not.
_ODD_FLOATS = frozenset({"Infinity", "-Infinity", "NaN"})


def refuse(where: str, fault: str) -> NoReturn:
    """Refuse a value.

    Args:
        where: Where it stands.
        fault: What is wrong with it.

    Raises:
        Problem: `invalid_program`.
    """
    raise Problem("invalid_program", f"{where}: {fault}.")


def integer(value: Any, where: str) -> int:  # noqa: ANN401 - whatever JSON holds
    """Give a whole number of 64 bits."""
    if type(value) is not int or not -_LARGEST <= value < _LARGEST:
        refuse(where, "a whole number is needed")
    return value


def boolean(value: Any, where: str) -> bool:  # noqa: ANN401
    """Give true or false."""
    if type(value) is not bool:
        refuse(where, "true or false is needed")
    return value


def number(value: Any, where: str) -> float | str:  # noqa: ANN401
    """Give a number, or the word for one that is not finite."""
    if type(value) is str and value in _ODD_FLOATS:
        return value
    if type(value) not in (int, float):
        refuse(where, "a number is needed")
    return float(value)


def word(check: Callable[[str, str], str]) -> Reader:
    """Make the reader of a text that has a grammar."""

    def read(value: Any, where: str) -> str:  # noqa: ANN401
        if type(value) is not str:
            refuse(where, "a text is needed")
        return check(value, where)

    return read


def one_of(*known: int) -> Reader:
    """Make the reader of a number that stands for something."""

    def read(value: Any, where: str) -> int:  # noqa: ANN401
        if type(value) is not int or value not in known:
            refuse(where, f"{str(value)[:40]} is none of {sorted(known)}")
        return value

    return read


def each(reader: Reader, most: int = 1_000_000) -> Reader:
    """Make the reader of a list."""

    def read(value: Any, where: str) -> list[Any]:  # noqa: ANN401
        if type(value) is not list or len(value) > most:
            refuse(where, "a list is needed")
        return [reader(member, where) for member in value]

    return read


def mapping(name: Callable[[str, str], str], reader: Reader) -> Reader:
    """Make the reader of an object whose members' names have a grammar."""

    def read(value: Any, where: str) -> dict[str, Any]:  # noqa: ANN401
        if type(value) is not dict:
            refuse(where, "an object is needed")
        return {name(key, where): reader(member, f"{where} {key}") for key, member in value.items()}

    return read


def optional(reader: Reader) -> Reader:
    """Make the reader of what may be null."""
    return lambda value, where: None if value is None else reader(value, where)


def record(members: Mapping[str, Reader], defaults: Mapping[str, Any] | None = None) -> Reader:
    """Make the reader of an object with known members; others are left out."""
    known = defaults or {}

    def read(value: Any, where: str) -> dict[str, Any]:  # noqa: ANN401
        if type(value) is not dict:
            refuse(where, "an object is needed")
        found = {}
        for name, reader in members.items():
            if name not in value and name not in known:
                refuse(where, f"{name!r} is missing")
            given = value[name] if name in value else known[name]
            found[name] = reader(given, f"{where} {name}")
        return found

    return read


def union(members: Mapping[str, Reader]) -> Reader:
    """Make the reader of an object with one member, whose name says what it is."""

    def read(value: Any, where: str) -> dict[str, Any]:  # noqa: ANN401
        if type(value) is not dict or len(value) != 1:
            refuse(where, "an object of one member is needed")
        [(name, given)] = value.items()
        if name not in members:
            refuse(where, f"{name[:40]!a} is not accepted")
        return {name: members[name](given, where)}

    return read
