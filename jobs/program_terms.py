"""What an exported program may say beside operators: names, words, symbolic expressions.

torch evaluates expressions with sympy, which is Python's eval, and writes names into source code
that it runs. So each has a grammar, and nothing else gets that far.
"""

import ast
import keyword
import re
from typing import NoReturn

from jobs.problems import Problem

_MOST_EXPRESSION = 4000
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,255}")
_FQN = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
#: torch counts up to the number of a symbol, so it has an end.
_SYMBOL = re.compile(r"[a-z]{1,8}[0-9]{1,5}")
_ENTRY = re.compile(r"(weight|tensor)_[0-9]{1,6}")
_TEXT = re.compile(r"[A-Za-z0-9_,.> -]{0,200}")

#: What sympy's srepr writes of sizes and of conditions on them.
_FUNCTIONS = frozenset(
    """
    Symbol Integer Add Mul Max Min Mod PythonMod FloorDiv CleanDiv CeilDiv IntTrueDiv
    FloorToInt CeilToInt TruncToInt RoundToInt ToFloat Equality Eq Ne Ge Gt Le Lt
    GreaterThan LessThan StrictGreaterThan StrictLessThan And Or Not
    """.split()  # noqa: SIM905 - a list reads worse
) | {"Unequality"}  # codespell:ignore
_ASSUMPTIONS = frozenset({"positive", "integer", "nonnegative", "nonzero", "real", "zero"})


def check_identifier(name: str, what: str) -> str:
    """Give a name that torch writes into source code.

    Args:
        name: The name.
        what: What it is called in the problem.

    Returns:
        The same.

    Raises:
        Problem: `invalid_program`.
    """
    is_one = _IDENTIFIER.fullmatch(name) and not keyword.iskeyword(name)
    return name if is_one else _refuse(name, what, "identifier")


def check_fqn(name: str, what: str) -> str:
    """Give the dotted name of a parameter, buffer or constant.

    Args:
        name: The name.
        what: What it is called in the problem.

    Returns:
        The same.

    Raises:
        Problem: `invalid_program`.
    """
    is_one = len(name) <= 500 and _FQN.fullmatch(name)
    return name if is_one else _refuse(name, what, "dotted name")


def check_entry(name: str, what: str) -> str:
    """Give the name of a tensor's bytes in the archive.

    Args:
        name: The name.
        what: What it is called in the problem.

    Returns:
        The same.

    Raises:
        Problem: `invalid_program`, or `unsafe_program` where it is that of an object.
    """
    if name.startswith(("custom_obj_", "opaque_obj_")):
        raise Problem("unsafe_program", f"{what}: {name[:80]!a} is an object, and no tensor.")
    return name if _ENTRY.fullmatch(name) else _refuse(name, what, "entry for a tensor")


def check_text(text: str, what: str) -> str:
    """Give a word that operators take, such as ``same`` or an equation of einsum.

    Args:
        text: The word.
        what: What it is called in the problem.

    Returns:
        The same.

    Raises:
        Problem: `invalid_program`.
    """
    return text if _TEXT.fullmatch(text) else _refuse(text, what, "word that an operator takes")


def check_symbol(name: str, what: str) -> str:
    """Give the name of a symbolic size.

    Args:
        name: The name, such as ``s40``.
        what: What it is called in the problem.

    Returns:
        The same.

    Raises:
        Problem: `invalid_expression`.
    """
    is_one = _SYMBOL.fullmatch(name)
    return name if is_one else _refuse(name, what, "symbol such as s0", "invalid_expression")


def check_expression(text: str, what: str) -> str:
    """Give a symbolic expression, such as ``Mul(Integer(2), Symbol('s0', integer=True))``.

    Args:
        text: As sympy's srepr writes it.
        what: What it is called in the problem.

    Returns:
        The same.

    Raises:
        Problem: `invalid_expression`.
    """
    if len(text) > _MOST_EXPRESSION:
        fault: object = f"it is longer than {_MOST_EXPRESSION} characters"
    else:
        try:
            _check_node(ast.parse(text, mode="eval").body)
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            fault = error
        else:
            return text
    raise Problem(
        "invalid_expression",
        f"{what}: the expression {text[:120]!a} is not accepted: {str(fault)[:120]}.",
    )


def _refuse(text: str, what: str, kind: str, code: str = "invalid_program") -> NoReturn:
    raise Problem(code, f"{what}: {text[:80]!a} is no {kind}.")


def _check_node(node: ast.expr) -> None:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        raise ValueError("it is no call of a function of sympy")  # noqa: TRY004 - of the text
    name = node.func.id
    if name not in _FUNCTIONS:
        raise ValueError(f"it calls {name!a}")
    if name == "Symbol":
        _check_symbol_node(node)
        return
    if node.keywords:
        raise ValueError(f"{name} takes no keywords")
    if name == "Integer":
        [number] = node.args
        value = ast.literal_eval(number)
        if type(value) is not int or abs(value) >= 2**63:
            raise ValueError("an Integer is none")
        return
    for argument in node.args:
        _check_node(argument)


def _check_symbol_node(node: ast.Call) -> None:
    [symbol] = node.args
    if not isinstance(symbol, ast.Constant) or not _SYMBOL.fullmatch(str(symbol.value)):
        raise ValueError("a Symbol has no name such as s0")
    for word in node.keywords:
        is_flag = isinstance(word.value, ast.Constant) and type(word.value.value) is bool
        if word.arg not in _ASSUMPTIONS or not is_flag:
            raise ValueError("a Symbol has more than assumptions")
