"""An exported program (.pt2) on disk: its tensors and its graph, checked against one another.

Written by `torch.export.save`; read here without torch, as the data that it then is.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from jobs.problems import Problem
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
from jobs.program_graph import load_json, read_graph
from jobs.program_schema import DTYPES, payload_config
from jobs.program_values import refuse
from jobs.safetensors_header import DTYPE_BYTES, TensorSpec

FORMAT = "pt2"
_MOST_DIMENSIONS = 64


@dataclass(frozen=True)
class ProgramTensor:
    """A parameter, buffer or constant.

    Attributes:
        spec: Its name, dtype and shape; it begins where its entry does.
        strides: How many values apart the neighbours in each dimension are.
        offset: Which value of the entry is its first.
        entry: The entry that holds it; tied ones have one entry.
        is_parameter: Whether it is one.
        is_trained: Whether it takes gradients.
    """

    spec: TensorSpec
    strides: tuple[int, ...]
    offset: int
    entry: str
    is_parameter: bool
    is_trained: bool

    @property
    def is_contiguous(self) -> bool:
        """Whether its values lie one behind the other, from the start of its entry."""
        expected = 1
        for size, stride in zip(reversed(self.spec.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return self.offset == 0


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
            **read_tensors(read(WEIGHTS_CONFIG), WEIGHTS, spans),
            **read_tensors(read(CONSTANTS_CONFIG), CONSTANTS, spans),
        }
    program = Program(path, document, tensors, spans)
    _check_sources(program)
    unused = {name for name in spans if PAYLOAD.fullmatch(name)} - {
        tensor.entry for tensor in tensors.values()
    }
    if unused:
        refuse(path.name, f"no tensor lies in {min(unused)}")
    return program


def read_tensors(
    raw: bytes, folder: str, spans: Mapping[str, tuple[int, int]]
) -> dict[str, ProgramTensor]:
    """Read a config of weights or of constants.

    Args:
        raw: Its JSON.
        folder: Where in the archive their bytes lie.
        spans: By the name of each entry, where it begins and how many bytes it has.

    Returns:
        The tensors by their names. All of their values lie in their entries.

    Raises:
        Problem: `invalid_program`, `unsafe_program`, `tensor_out_of_bounds`.
    """
    config = payload_config(load_json(raw, f"the config of {folder}"), folder)["config"]
    return {name: _tensor(name, payload, folder, spans) for name, payload in config.items()}


def _tensor(
    name: str, payload: dict[str, Any], folder: str, spans: Mapping[str, tuple[int, int]]
) -> ProgramTensor:
    meta = payload["tensor_meta"]
    sizes, strides, offset = (
        _numbers(meta["sizes"], name),
        _numbers(meta["strides"], name),
        _numbers([meta["storage_offset"]], name)[0],
    )
    entry = folder + payload["path_name"]
    if entry not in spans:
        refuse(name, f"its bytes, {entry}, are not in the archive")
    if len(sizes) != len(strides) or len(sizes) > _MOST_DIMENSIONS:
        refuse(name, f"its shape {list(sizes)} has the strides {list(strides)}")
    spec = TensorSpec(name, DTYPES[meta["dtype"]], sizes, 0)
    # Strides may have holes between values, but none leads out of the entry.
    steps = zip(sizes, strides, strict=True)
    last = offset + sum((size - 1) * stride for size, stride in steps)
    end = (last + 1) * DTYPE_BYTES[spec.dtype] if spec.elements else 0
    if end > spans[entry][1]:
        raise Problem(
            "tensor_out_of_bounds",
            f"Tensor {name[:80]!r} ends at byte {end} of {entry}, which has {spans[entry][1]}.",
        )
    return ProgramTensor(spec, strides, offset, entry, payload["is_param"], meta["requires_grad"])


def _numbers(values: list[dict[str, Any]], name: str) -> tuple[int, ...]:
    found = tuple(value.get("as_int", -1) for value in values)
    if any(not 0 <= value < 2**48 for value in found):
        refuse(name, "a stored tensor has sizes that are no plain numbers")
    return found


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
