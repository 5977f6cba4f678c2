"""The graph of an exported program, read from its JSON as data and written again.

Left out is what says nothing of what the program computes and is run or read by torch all the same:
guards, stack traces, the stack of modules, metadata of nodes.
"""

import json
from typing import Any

from jobs.problems import Problem
from jobs.program_schema import graph, input_spec, output_spec
from jobs.program_terms import check_identifier, check_symbol
from jobs.program_values import each, integer, mapping, optional, record, refuse, word

MAX_GRAPH_BYTES = 16 * 1024**2
#: As Python's objects, a byte of JSON can be a hundred.
_MOST_CONTAINERS, _MOST_COMMAS = 250_000, 1_000_000
_SCHEMA_MAJOR = 8
_PYTREES = frozenset({"builtins.tuple", "builtins.list", "builtins.dict"})
_MOST_DEPTH = 16


def _read_treespec(value: Any, where: str) -> str:  # noqa: ANN401
    """Read how inputs or outputs are nested, which torch writes as JSON in a text."""
    if type(value) is not str or len(value) > 65_536:
        refuse(where, "a text is needed")
    try:
        protocol, tree = json.loads(value)
        if protocol != 1:
            refuse(where, "its protocol is not 1")
        return json.dumps([1, _read_tree(tree, where, 0)])
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise Problem("invalid_program", f"{where}: it cannot be read.") from error


def _read_tree(tree: Any, where: str, depth: int) -> dict[str, Any]:  # noqa: ANN401
    kind, context, children = tree["type"], tree["context"], tree["children_spec"]
    if depth > _MOST_DEPTH or (kind is not None and kind not in _PYTREES):
        refuse(
            where,
            f"{str(kind)[:60]!a} is nested too deep, or no tuple, list or dict; return one of them",
        )
    if context is not None:
        names = json.loads(context)
        # They become names of arguments in source code.
        context = json.dumps(names and [check_identifier(str(name), where) for name in names])
    inner = [_read_tree(child, where, depth + 1) for child in children]
    return {"type": kind, "context": context, "children_spec": inner}


_call = record(
    {
        "fqn": lambda _value, _where: "",
        "signature": record(
            {
                "inputs": lambda _value, _where: [],
                "outputs": lambda _value, _where: [],
                "in_spec": _read_treespec,
                "out_spec": _read_treespec,
                "forward_arg_names": optional(each(word(check_identifier), 1000)),
            },
            {"forward_arg_names": None},
        ),
    }
)


def _read_calls(value: Any, where: str) -> list[Any]:  # noqa: ANN401
    """Keep the call of the program itself, without those of the modules that it was made of."""
    if type(value) is not list or not value:
        refuse(where, "a list is needed")
    return [_call(value[0], where)]


def _read_version(value: Any, where: str) -> dict[str, int]:  # noqa: ANN401
    version: dict[str, int] = record({"major": integer, "minor": integer})(value, where)
    if version["major"] != _SCHEMA_MAJOR:
        refuse(
            where,
            f"its schema is {version['major']}.{version['minor']}, and {_SCHEMA_MAJOR} is read; "
            "export it with torch 2.9 or newer",
        )
    return version


def _read_verifiers(value: Any, where: str) -> list[str]:  # noqa: ANN401
    if type(value) is not list or any(name not in ("TRAINING", "ATEN", "") for name in value):
        refuse(where, f"the dialect {str(value)[:60]} is not one of torch.export itself")
    return value


_program = record(
    {
        "graph_module": record(
            {
                "graph": graph,
                "signature": record(
                    {"input_specs": each(input_spec), "output_specs": each(output_spec)}
                ),
                "module_call_graph": _read_calls,
                "metadata": lambda _value, _where: {},
                "treespec_namedtuple_fields": lambda _value, _where: {},
            },
            {"metadata": {}, "treespec_namedtuple_fields": {}},
        ),
        "opset_version": mapping(check_identifier, integer),
        "range_constraints": mapping(
            check_symbol, record({"min_val": optional(integer), "max_val": optional(integer)})
        ),
        "schema_version": _read_version,
        "verifiers": _read_verifiers,
        "torch_version": word(lambda text, _where: text[:64] if text.isascii() else ""),
        "guards_code": lambda _value, _where: [],
    },
    {"verifiers": [], "torch_version": "", "guards_code": []},
)


def load_json(raw: bytes, what: str) -> Any:  # noqa: ANN401
    """Read JSON that may have been made to exhaust whoever reads it.

    Args:
        raw: The text.
        what: What it is called in the problem.

    Returns:
        Its values.

    Raises:
        Problem: `invalid_program`.
    """
    if len(raw) > MAX_GRAPH_BYTES:
        refuse(what, f"it has {len(raw)} bytes, and {MAX_GRAPH_BYTES} are read")
    if raw.count(b"{") + raw.count(b"[") > _MOST_CONTAINERS or raw.count(b",") > _MOST_COMMAS:
        refuse(what, f"it has more than {_MOST_CONTAINERS} lists and objects, or too many values")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Problem("invalid_program", f"{what} is not JSON: {str(error)[:120]}.") from error


def canonical(document: dict[str, Any]) -> bytes:
    """Give the JSON of what was read; equal for equal documents."""
    return json.dumps(document, separators=(",", ":"), allow_nan=False).encode()


def read_graph(raw: bytes) -> dict[str, Any]:
    """Read ``models/model.json``.

    Args:
        raw: The text.

    Returns:
        What torch's ``ExportedProgram`` of its schema is written as, with nothing in it that was
        not looked at.

    Raises:
        Problem: `invalid_program`, `unsafe_program`, `unsupported_operator`, `invalid_expression`.
    """
    found: dict[str, Any] = _program(load_json(raw, "model.json"), "model.json")
    return found
