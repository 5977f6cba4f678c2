"""The parts of an exported program's graph: which members they have, and what these may hold.

Follows torch/_export/serde/schema.py of torch 2.13, schema version 8.
"""

from typing import Any

from jobs.problems import Problem
from jobs.program_operators import check_operator
from jobs.program_terms import (
    check_entry,
    check_expression,
    check_fqn,
    check_identifier,
    check_text,
)
from jobs.program_values import (
    Reader,
    boolean,
    each,
    integer,
    mapping,
    number,
    one_of,
    optional,
    record,
    refuse,
    union,
    word,
)

#: What safetensors calls the dtypes of torch's serialization.
DTYPES = {
    1: "U8", 2: "I8", 3: "I16", 4: "I32", 5: "I64", 6: "F16", 7: "F32", 8: "F64", 12: "BOOL",
    13: "BF16",
}  # fmt: skip
MOST_NODES = 50_000
_STRIDED = 7


def _unsafe(what: str) -> Reader:
    def read(_: Any, where: str) -> Any:  # noqa: ANN401 - it never gives anything
        raise Problem("unsafe_program", f"{where}: {what}.")

    return read


_identifier, _fqn = word(check_identifier), word(check_fqn)
_named = record({"name": _identifier})
_hint = union({"as_int": integer, "as_bool": boolean, "as_float": number})
_expression = record({"expr_str": word(check_expression), "hint": optional(_hint)}, {"hint": None})
_sym_int = union({"as_expr": _expression, "as_int": integer})


def _read_device(value: Any, where: str) -> dict[str, Any]:  # noqa: ANN401
    if value not in ({"type": "cpu", "index": None}, {"type": "cpu"}):
        refuse(where, f"the program was exported on {str(value)[:60]}; move the model to the cpu")
    return {"type": "cpu", "index": None}


def _refuse_pickle(value: Any, where: str) -> bool:  # noqa: ANN401
    if value is not False:
        raise Problem("unsafe_program", f"{where}: it is pickled; use tensors of torch itself.")
    return False


tensor_meta = record(
    {
        "dtype": one_of(*DTYPES),
        "sizes": each(_sym_int, 64),
        "requires_grad": boolean,
        "device": _read_device,
        "strides": each(_sym_int, 64),
        "storage_offset": _sym_int,
        "layout": one_of(_STRIDED),
    }
)
_sym_int_argument = union({"as_name": _identifier, "as_int": integer})
_sym_float_argument = union({"as_name": _identifier, "as_float": number})
_sym_bool_argument = union({"as_name": _identifier, "as_bool": boolean})
_optional_tensor = union({"as_tensor": _named, "as_none": boolean})
_argument = union(
    {
        "as_none": boolean,
        "as_tensor": _named,
        "as_tensors": each(_named),
        "as_int": integer,
        "as_ints": each(integer),
        "as_float": number,
        "as_floats": each(number),
        "as_string": word(check_text),
        "as_strings": each(word(check_text)),
        "as_sym_int": _sym_int_argument,
        "as_sym_ints": each(_sym_int_argument),
        "as_scalar_type": one_of(*DTYPES),
        "as_memory_format": one_of(1, 2, 3, 4),
        "as_layout": one_of(_STRIDED),
        "as_device": _read_device,
        "as_bool": boolean,
        "as_bools": each(boolean),
        "as_sym_bool": _sym_bool_argument,
        "as_sym_bools": each(_sym_bool_argument),
        "as_optional_tensors": each(_optional_tensor),
        "as_optional_tensor": _optional_tensor,
        "as_sym_float": _sym_float_argument,
        "as_sym_floats": each(_sym_float_argument),
        "as_nested_tensors": each(each(_named)),
        "as_int_lists": each(each(integer)),
        "as_float_lists": each(each(number)),
        "as_graph": _unsafe("it holds a graph of its own, as control flow does"),
        "as_operator": _unsafe("it names an operator to call"),
        "as_custom_obj": _unsafe("it is a custom object"),
    }
)
_node = record(
    {
        "target": word(lambda target, _: check_operator(target)),
        "inputs": each(
            record(
                {
                    "name": word(lambda name, where: name and check_identifier(name, where)),
                    "arg": _argument,
                    "kind": optional(one_of(0, 1, 2)),
                },
                {"kind": None},
            )
        ),
        "outputs": each(_argument),
        "metadata": lambda _value, _where: {},
        "is_hop_single_tensor_return": optional(boolean),
        "name": optional(_identifier),
    },
    {"is_hop_single_tensor_return": None, "name": None, "metadata": {}},
)
graph = record(
    {
        "inputs": each(_argument),
        "outputs": each(_argument),
        "nodes": each(_node, MOST_NODES),
        "tensor_values": mapping(check_identifier, tensor_meta),
        "sym_int_values": mapping(check_identifier, _sym_int),
        "sym_bool_values": mapping(
            check_identifier, union({"as_expr": _expression, "as_bool": boolean})
        ),
        "is_single_tensor_return": boolean,
        "custom_obj_values": mapping(check_identifier, _unsafe("it is a custom object")),
        "sym_float_values": mapping(
            check_identifier, union({"as_expr": _expression, "as_float": number})
        ),
    },
    {"is_single_tensor_return": False, "custom_obj_values": {}, "sym_float_values": {}},
)
_constant = union(
    {
        "as_none": boolean, "as_int": integer, "as_float": number, "as_string": word(check_text),
        "as_bool": boolean,
    }
)  # fmt: skip
input_spec = union(
    {
        "user_input": record({"arg": _argument}),
        "parameter": record({"arg": _named, "parameter_name": _fqn}),
        "buffer": record({"arg": _named, "buffer_name": _fqn, "persistent": boolean}),
        "tensor_constant": record({"arg": _named, "tensor_constant_name": _fqn}),
        "constant_input": record({"name": _identifier, "value": _constant}),
        "custom_obj": _unsafe("it is a custom object"),
        "token": _unsafe("it is a token of an operator with effects"),
    }
)
output_spec = union(
    {
        "user_output": record({"arg": _argument}),
        "buffer_mutation": record({"arg": _named, "buffer_name": _fqn}),
    }
)
_payload = record(
    {
        "path_name": word(check_entry),
        "is_param": boolean,
        "use_pickle": _refuse_pickle,
        "tensor_meta": tensor_meta,
    }
)
payload_config = record({"config": mapping(check_fqn, _payload)})
