"""An exported program (.pt2) on disk: its tensors and its graph, checked against one another.

Written by `torch.export.save`; read here without torch, as the data that it then is.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs.program_archive import (
    CONSTANTS,
    CONSTANTS_CONFIG,
    GRAPH,
    PAYLOAD,
    PROGRAM_NAME,
    WEIGHTS,
    WEIGHTS_CONFIG,
    read_archive,
)
from jobs.program_flow import check_flow
from jobs.program_graph import read_graph
from jobs.program_schema import DTYPES
from jobs.program_tensors import ProgramTensor, read_config, read_tensors
from jobs.program_values import refuse

FORMAT = "pt2"


@dataclass(frozen=True)
class Program:
    """A checked program.

    Attributes:
        path: Its file.
        document: What ``models/model.json`` says.
        tensors: Every parameter, buffer and constant by its name.
        spans: Where each entry begins in the file, and how many bytes it has.
    """

    path: Path
    document: Mapping[str, Any]
    tensors: Mapping[str, ProgramTensor]
    spans: Mapping[str, tuple[int, int]]

    @property
    def graph(self) -> Mapping[str, Any]:
        """Its operators and what they pass to one another."""
        found: Mapping[str, Any] = self.document["graph_module"]["graph"]
        return found

    @property
    def file_bytes(self) -> int:
        """Size of its file."""
        return self.path.stat().st_size

    @cached_property
    def sources(self) -> dict[str, str]:
        """The name of the tensor behind each name in the graph that stands for one."""
        found = {}
        for spec in self.document["graph_module"]["signature"]["input_specs"]:
            [members] = spec.values()
            for key in ("parameter_name", "buffer_name", "tensor_constant_name"):
                if key in members:
                    found[members["arg"]["name"]] = members[key]
        return found

    def is_whole(self, name: str) -> bool:
        """Whether a tensor's bytes are all of its entry's, one behind the other, and no other's."""
        tensor = self.tensors[name]
        is_all = self.spans[tensor.entry][1] == tensor.spec.nbytes
        return is_all and tensor.is_contiguous and self._users[tensor.entry] == 1

    @cached_property
    def _users(self) -> Counter[str]:
        return Counter(tensor.entry for tensor in self.tensors.values())

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the tensors that a user gives it, in order."""
        specs = self.document["graph_module"]["signature"]["input_specs"]
        given = (spec["user_input"]["arg"] for spec in specs if "user_input" in spec)
        return tuple(arg["as_tensor"]["name"] for arg in given if "as_tensor" in arg)

    def interface(self) -> list[Any]:
        """Give what a caller sees: how inputs and outputs are nested, and what each tensor is."""
        module = self.document["graph_module"]
        signature = module["signature"]
        values = self.graph["tensor_values"]
        given = [s["user_input"]["arg"] for s in signature["input_specs"] if "user_input" in s]
        made = [s["user_output"]["arg"] for s in signature["output_specs"] if "user_output" in s]
        call = module["module_call_graph"][0]["signature"]
        return [
            call["in_spec"],
            call["out_spec"],
            [_seen(arg, values) for arg in given],
            [_seen(arg, values)[1:] for arg in made],
        ]

    def facts(self) -> dict[str, Any]:
        """Give what it tells of itself, as a checkpoint does."""
        parameters: Counter[str] = Counter()
        dtype_bytes: Counter[str] = Counter()
        for tensor in self.tensors.values():
            parameters[tensor.spec.dtype] += tensor.spec.elements
            dtype_bytes[tensor.spec.dtype] += tensor.spec.nbytes
        return {
            "format": FORMAT,
            "architecture": None,
            "files": [self.path.name],
            "tensors": len(self.tensors),
            "parameters": parameters.total(),
            "tensor_bytes": dtype_bytes.total(),
            "parameters_by_dtype": dict(sorted(parameters.items())),
            "bytes_by_dtype": dict(sorted(dtype_bytes.items())),
        }


def is_program(folder: Path) -> bool:
    """Tell whether a stored model is an exported program."""
    return (folder / PROGRAM_NAME).exists()


def open_program(path: Path) -> Program:
    """Read a program that this project wrote, and check that its parts fit one another.

    Args:
        path: The file.

    Returns:
        The program. Nothing that it names makes torch evaluate, unpickle or compile anything.

    Raises:
        Problem: `invalid_program`, `unsafe_program`, `unsupported_operator`, `invalid_expression`.
    """
    spans = read_archive(path)
    with path.open("rb") as file:

        def read(name: str) -> bytes:
            start, nbytes = spans.get(name, (0, -1))
            if nbytes < 0:
                refuse(path.name, f"it has no {name}")
            file.seek(start)
            return file.read(nbytes)

        document = read_graph(read(GRAPH))
        tensors = {
            **read_tensors(read_config(read(WEIGHTS_CONFIG), WEIGHTS), WEIGHTS, spans),
            **read_tensors(read_config(read(CONSTANTS_CONFIG), CONSTANTS), CONSTANTS, spans),
        }
    return assemble_program(Program(path, document, tensors, spans))


def assemble_program(program: Program) -> Program:
    """Check that the parts of a program fit one another.

    Args:
        program: The program, each part of which was read.

    Returns:
        The same.

    Raises:
        Problem: `invalid_program`.
    """
    check_flow(program.graph)
    _check_sources(program)
    used = {tensor.entry for tensor in program.tensors.values()}
    unused = {name for name in program.spans if PAYLOAD.fullmatch(name)} - used
    if unused:
        refuse(program.path.name, f"no tensor lies in {min(unused)}")
    return program


def _check_sources(program: Program) -> None:
    """Check that the graph takes tensors of the shape that is stored."""
    values = program.graph["tensor_values"]
    for node_name, name in program.sources.items():
        tensor, meta = program.tensors.get(name), values.get(node_name)
        if tensor is None or meta is None:
            refuse(name, "the graph takes it, and it is not stored")
        sizes = [size.get("as_int") for size in meta["sizes"]]
        if sizes != list(tensor.spec.shape) or DTYPES[meta["dtype"]] != tensor.spec.dtype:
            refuse(name, f"the graph takes {sizes}, and {list(tensor.spec.shape)} is stored")


def _seen(argument: dict[str, Any], values: Mapping[str, Any]) -> tuple[Any, ...]:
    """Give an input's or output's name, dtype and shape, sizes that vary as None."""
    name = argument.get("as_tensor", {}).get("name")
    if name is None:
        return (None, argument)
    meta = values.get(name) or refuse(name, "the graph does not say what it is")
    return (name, DTYPES[meta["dtype"]], [size.get("as_int") for size in meta["sizes"]])
