"""Exported programs (.pt2) that run code where they are opened, lie, or exhaust whoever reads."""

import copy
import io
import json
import os
import pickle
import zipfile

import pytest
import torch
from torch import nn

MARKED = "/tmp/modelpress-was-here"
GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
SAMPLES = "data/sample_inputs/model.pt"


class Trap:
    def __reduce__(self):
        return (os.system, (f"touch {MARKED}",))


@pytest.fixture(scope="module")
def saved():
    """Give the entries of a program, as torch writes them."""
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    rows = torch.export.Dim("rows", max=64)
    program = torch.export.export(model, (torch.zeros(2, 4),), dynamic_shapes=({0: rows},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def zipped(entries, root="model/", method=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries.items():
            archive.writestr(root + name, data)
    return buffer.getvalue()


def with_entry(name, data=b"x"):
    return lambda entries: zipped({**entries, name: data})


def without(name):
    return lambda entries: zipped({key: data for key, data in entries.items() if key != name})


def edited(*path, to, entry=GRAPH):
    """Change one value of a JSON entry; a function gets the old one."""

    def make(entries):
        document = json.loads(entries[entry])
        place = document
        for key in path[:-1]:
            place = place[key]
        old = place[path[-1]] if not isinstance(place, dict) else place.get(path[-1])
        place[path[-1]] = to(copy.deepcopy(old)) if callable(to) else to
        return zipped({**entries, entry: json.dumps(document).encode()})

    return make


NODE = ("graph_module", "graph", "nodes", 0)
ROOT_CALL = ("graph_module", "module_call_graph", 0, "signature")
INPUT_SIZE = ("graph_module", "graph", "tensor_values", "input", "sizes", 0)
FIRST_WEIGHT = ("config", "0.weight")


def target(name):
    return edited(*NODE, "target", to=name), "unsupported_operator"


def expression(text):
    return edited(*INPUT_SIZE, to={"as_expr": {"expr_str": text, "hint": None}}), (
        "invalid_expression"
    )


def argument(value):
    return edited(*NODE, "inputs", 0, "arg", to=value)


def weight(name, value):
    return edited(*FIRST_WEIGHT, name, to=value, entry=WEIGHTS)


def stored(name, value):
    return edited(*FIRST_WEIGHT, "tensor_meta", name, to=value, entry=WEIGHTS)


def nested(depth, kind="builtins.tuple"):
    tree = {"type": None, "context": None, "children_spec": []}
    for _ in range(depth):
        tree = {"type": kind, "context": "null", "children_spec": [tree]}
    return json.dumps([1, tree])


RUN = f"__import__('os').system('touch {MARKED}')"
TRAP = pickle.dumps(Trap())
CASES = {
    # What torch.export.load runs.
    "compiled code": (with_entry("data/aotinductor/model/a.so", b"\x7fELF"), "unsafe_program"),
    "a custom object": (with_entry("data/constants/custom_obj_0", TRAP), "unsafe_program"),
    "an opaque object": (with_entry("data/constants/opaque_obj_0", TRAP), "unsafe_program"),
    "a constant that is a custom object": (
        edited("config", "a", entry=CONSTANTS, to={
            "path_name": "custom_obj_0", "is_param": False, "use_pickle": False,
            "tensor_meta": None,
        }), "unsafe_program",
    ),
    "a pickled weight": (weight("use_pickle", True), "unsafe_program"),
    "a pickled constant": (
        edited("config", "a", entry=CONSTANTS, to={
            "path_name": "tensor_0", "is_param": False, "use_pickle": True, "tensor_meta": None,
        }), "unsafe_program",
    ),
    "weights as a pickle": (with_entry("data/weights/model.pt", TRAP), "unsafe_program"),
    "constants as a pickle": (with_entry("data/constants/model.pt", TRAP), "unsafe_program"),
    "a program of another runtime": (with_entry("executorch/model.pte"), "unsafe_program"),
    "two programs": (with_entry("models/other.json", b"{}"), "invalid_program"),
    "a graph in an argument": (
        argument({"as_graph": {"name": "g", "graph": {}}}), "unsafe_program",
    ),
    "an operator as an argument": (argument({"as_operator": "os.system"}), "unsafe_program"),
    "an object as an argument": (
        argument({"as_custom_obj": {"name": "a", "class_fqn": "b"}}), "unsafe_program",
    ),
    "an object in the graph": (
        edited("graph_module", "graph", "custom_obj_values", to={"a": {"name": "a"}}),
        "unsafe_program",
    ),
    # Expressions, which sympy evaluates.
    "an import": expression(RUN),
    "a call of what a name leads to": expression("Symbol.__class__.__mro__"),
    "a lambda": expression("(lambda: 1)()"),
    "a function of sympy that is none of sizes": expression("Lambda(1, 2)"),
    "a power": expression("Pow(Integer(9), Integer(999999999))"),
    "operators": expression("9**9**9**9"),
    "a text that is a number": expression("Integer('1')"),
    "a number without end": expression(f"Integer({'9' * 3000})"),
    "a symbol that is code": expression(f'Symbol("{RUN}")'),
    "a symbol with a number that is counted to": expression("Symbol('u999999999')"),
    "a symbol with more than assumptions": expression("Symbol('s0', cls=Integer)"),
    "brackets": expression("(" * 3000),
    "nested deep": expression("Add(" * 900 + "Integer(1)" + ")" * 900),
    "a long one": expression("Add(" + "Integer(1), " * 1000 + "Integer(1))"),
    "a range of no symbol": (
        edited("range_constraints", to={RUN: {"min_val": 0, "max_val": 1}}), "invalid_expression",
    ),
    "a range of a symbol that is counted to": (
        edited("range_constraints", to={"u99999999": {"min_val": 0, "max_val": 1}}),
        "invalid_expression",
    ),
    # Targets, which are found by getattr.
    "os.system": target("os.system"),
    "torch.load": target("torch.load"),
    "torch.hub": target("torch.hub.load"),
    "a class of an operator": target("torch.ops.aten.relu.default.__class__"),
    "an operator that reads files": target("torch.ops.aten.from_file.default"),
    "an operator of others": target("torch.ops.mylib.evil.default"),
    "control flow": target("torch.ops.higher_order.cond"),
    "attrgetter": target("_operator.attrgetter"),
    "methodcaller": target("_operator.methodcaller"),
    "an extension": target("#evil:evil"),
    "a target of a megabyte": target("torch.ops.aten." + "a" * 2**20),
    # Names, which become source code.
    "a node's name": (edited(*NODE, "name", to=f"x\n{RUN}\n"), "invalid_program"),
    "a keyword as a name": (edited(*NODE, "name", to="import"), "invalid_program"),
    "an argument's name": (
        edited(*ROOT_CALL, "forward_arg_names", to=[f"x={RUN}"]), "invalid_program",
    ),
    "a keyword argument's name": (
        edited(*ROOT_CALL, "in_spec", to=json.dumps([1, {
            "type": "builtins.dict", "context": json.dumps([f"x={RUN}"]), "children_spec": [],
        }])), "invalid_program",
    ),
    "an input's name": (
        edited("graph_module", "graph", "inputs", 0, to={"as_tensor": {"name": f"x={RUN}"}}),
        "invalid_program",
    ),
    "a parameter's name": (
        edited("config", to=lambda old: {f"a'],{RUN}": old["0.weight"]}, entry=WEIGHTS),
        "invalid_program",
    ),
    "a word": (argument({"as_string": f'"\n{RUN}'}), "invalid_program"),
    "a kind of tree": (edited(*ROOT_CALL, "in_spec", to=nested(1, "os.system")), "invalid_program"),
    "a deep tree": (edited(*ROOT_CALL, "in_spec", to=nested(300)), "invalid_program"),
    "a tree of brackets": (edited(*ROOT_CALL, "in_spec", to="[" * 60_000), "invalid_program"),
    "a tree of nothing": (edited(*ROOT_CALL, "in_spec", to="[1, {}]"), "invalid_program"),
    "a dialect": (edited("verifiers", to=["EDGE"]), "invalid_program"),
    # Lies.
    "a weight larger than its bytes": (
        stored("sizes", [{"as_int": 3}, {"as_int": 5}]), "tensor_out_of_bounds",
    ),
    "strides that lead out": (
        stored("strides", [{"as_int": 2**40}, {"as_int": 1}]), "tensor_out_of_bounds",
    ),
    "an offset that leads out": (stored("storage_offset", {"as_int": 9}), "tensor_out_of_bounds"),
    "an offset below zero": (stored("storage_offset", {"as_int": -9}), "invalid_program"),
    "a size below zero": (stored("sizes", [{"as_int": -3}, {"as_int": 4}]), "invalid_program"),
    "a size beyond all memory": (
        stored("sizes", [{"as_int": 2**62}, {"as_int": 2**62}]), "invalid_program",
    ),
    "a stored size that varies": (
        stored("sizes", [{"as_expr": {"expr_str": "Symbol('s0')"}}, {"as_int": 4}]),
        "invalid_program",
    ),
    "a dtype that is none": (stored("dtype", 99), "invalid_program"),
    "a layout that is not dense": (stored("layout", 2), "invalid_program"),
    "a device": (stored("device", {"type": "cuda", "index": 0}), "invalid_program"),
    "a device that is none": (stored("device", {"type": RUN, "index": None}), "invalid_program"),
    "more strides than sizes": (stored("strides", [{"as_int": 1}] * 3), "invalid_program"),
    "an entry elsewhere": (weight("path_name", "../../etc/passwd"), "invalid_program"),
    "an entry that is not there": (weight("path_name", "weight_99"), "invalid_program"),
    "a weight that the graph has otherwise": (
        edited("graph_module", "graph", "tensor_values", "p_0_weight", "sizes", 0,
               to={"as_int": 2}), "invalid_program",
    ),
    "a weight that is not stored": (
        edited("config", to=lambda old: {"2.bias": old["2.bias"]}, entry=WEIGHTS),
        "invalid_program",
    ),
    "bytes of no tensor": (with_entry("data/weights/weight_77"), "invalid_program"),
    "a value that is made twice": (
        edited("graph_module", "graph", "nodes", to=lambda old: [*old, old[0]]), "invalid_program",
    ),
    "a value that is taken before it is made": (
        edited("graph_module", "graph", "nodes", to=lambda old: old[::-1]), "invalid_program",
    ),
    "a value of which nothing is said": (
        edited("graph_module", "graph", "tensor_values", to={}), "invalid_program",
    ),
    "an output that nothing makes": (
        edited("graph_module", "graph", "outputs", 0, to={"as_tensor": {"name": "nothing"}}),
        "invalid_program",
    ),
    "a newer schema": (edited("schema_version", "major", to=9), "invalid_program"),
    "another order of bytes": (with_entry("byteorder", b"big"), "invalid_program"),
    "another format": (with_entry("archive_format", b"exe"), "invalid_program"),
    "an unknown entry": (with_entry("data/evil"), "invalid_program"),
    "an entry that climbs out": (with_entry("../../evil"), "invalid_program"),
    "compressed entries": (
        lambda entries: zipped(entries, method=zipfile.ZIP_DEFLATED), "invalid_program",
    ),
    "two folders": (
        lambda entries: zipped({**entries, "../b/data/weights/weight_0": b""}), "invalid_program",
    ),
    "no graph": (without(GRAPH), "invalid_program"),
    "no config": (without(WEIGHTS), "invalid_program"),
    # JSON that exhausts.
    "no JSON": (with_entry(GRAPH, b"\x00"), "invalid_program"),
    "a list": (with_entry(GRAPH, b"[]"), "invalid_program"),
    "brackets without end": (with_entry(GRAPH, b"[" * 250_000), "invalid_program"),
    "a million lists": (with_entry(GRAPH, b"[" + b"[]," * 10**6 + b"[]]"), "invalid_program"),
    "two million numbers": (with_entry(GRAPH, b"[" + b"1," * 2 * 10**6 + b"1]"), "invalid_program"),
    "ten million spaces": (with_entry(GRAPH, b" " * 10 * 2**20), "too_large"),
    "a number of 5,000 digits": (with_entry(GRAPH, b"1" * 5000), "invalid_program"),
    "ten thousand nodes": (
        edited("graph_module", "graph", "nodes",
               to=lambda old: [{**old[0], "metadata": {}}] * 10_000), "invalid_program",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("make", "code"), CASES.values(), ids=CASES.keys())
def test_a_hostile_program_is_refused_and_leaves_nothing(client, kept, saved, make, code):
    before = kept()

    answer = client.post("/models", data=io.BytesIO(make(saved)))

    expected = 413 if code == "too_large" else 422
    assert (answer.status_code, answer.json["code"]) == (expected, code), answer.json
    assert answer.json["detail"]
    assert len(answer.json["detail"]) < 1000
    assert kept() == before
    assert not os.path.exists(MARKED)


HARMLESS = {
    "sample inputs that are a trap": with_entry(SAMPLES, TRAP),
    "files beside it": with_entry("extra/run.sh", b"#!/bin/sh"),
    "guards": edited("guards_code", to=[RUN]),
    "a stack trace": edited(*NODE, "metadata", to={"stack_trace": RUN, "source_fn_stack": RUN}),
    "metadata of the graph": edited("graph_module", "metadata", to={"custom": RUN}),
    "members that nobody knows": edited("evil", to=RUN),
}


@pytest.mark.parametrize("make", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_no_program_needs_is_left_out(client, data_dir, saved, make):
    plain = client.post("/models", data=io.BytesIO(zipped(saved))).json

    answer = client.post("/models", data=io.BytesIO(make(saved)))

    assert answer.status_code in (200, 201), answer.json
    paths = [
        data_dir / "tenants/default/models" / one["id"][4:] / "files/model.pt2"
        for one in (plain, answer.json)
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert MARKED.encode() not in paths[1].read_bytes()
