"""The pickle of a torch.save file, read as data: nothing that it names is imported or called.

A pickle is a program for a small machine. This is that machine without the instructions that reach
out of it: the few functions that torch.save writes for tensors stand for themselves, and any other
is refused by its name. The instructions are told apart by the standard library.
"""

import pickletools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.problems import Problem

#: The storages of torch.save by what safetensors calls their dtype.
_STORAGE_DTYPES = {
    "torch.DoubleStorage": "F64",
    "torch.FloatStorage": "F32",
    "torch.HalfStorage": "F16",
    "torch.BFloat16Storage": "BF16",
    "torch.LongStorage": "I64",
    "torch.IntStorage": "I32",
    "torch.ShortStorage": "I16",
    "torch.CharStorage": "I8",
    "torch.ByteStorage": "U8",
    "torch.BoolStorage": "BOOL",
    "torch.ComplexFloatStorage": "C64",
    # Bytes whose dtype the tensor tells.
    "torch.storage.UntypedStorage": "U8",
}
_DTYPES = {
    "torch.float8_e4m3fn": "F8_E4M3",
    "torch.float8_e5m2": "F8_E5M2",
    "torch.uint16": "U16",
    "torch.uint32": "U32",
    "torch.uint64": "U64",
}
#: A tensor takes about 25 instructions and three containers; files hold up to 100,000 tensors.
_MOST_INSTRUCTIONS = 3_000_000
_MOST_CONTAINERS = 350_000
#: More dimensions than any tensor has.
_MOST_DIMENSIONS = 64
_HOW = "Save nothing but the state dict: torch.save(model.state_dict(), 'model.pt')."


@dataclass(frozen=True)
class StoredBytes:
    """The bytes that tensors are views of.

    Attributes:
        key: Which entry of the archive they are.
        dtype: What safetensors calls their dtype.
        elements: How many values they hold, as the pickle says.
    """

    key: str
    dtype: str
    elements: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the pickle describes it.

    Attributes:
        storage: Whose values they are.
        dtype: What safetensors calls its dtype.
        first: Which value of the storage is its first.
        shape: The dimensions.
        strides: How many values apart the neighbours in each dimension are.
    """

    storage: StoredBytes
    dtype: str
    first: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass(frozen=True)
class _Global:
    """Something of a module, by its full name and nothing else."""

    name: str


_MARK = object()


def read_pickle(raw: bytes) -> Any:  # noqa: ANN401 - whatever plain values it holds
    """Read a pickle.

    Args:
        raw: Its bytes.

    Returns:
        Plain values, with a `StoredTensor` for every tensor.

    Raises:
        Problem: `unsupported_format`: it names something that is no part of a tensor;
            `invalid_checkpoint`: it is damaged.
    """
    try:
        return _Machine().run(raw)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # What is wrong may be quoted in it, and be as long as the file.
        reason = str(error)[:200]
        raise Problem("invalid_checkpoint", f"data.pkl cannot be read: {reason}.") from error


class _Machine:
    def __init__(self) -> None:
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._containers = 0
        self._dtypes: dict[str, str] = {}

    def run(self, raw: bytes) -> Any:  # noqa: ANN401
        for number, (opcode, argument, position) in enumerate(pickletools.genops(raw)):
            if number > _MOST_INSTRUCTIONS:
                raise ValueError(f"it has over {_MOST_INSTRUCTIONS} instructions")
            if opcode.name == "STOP":
                return self._stack.pop()
            act = _INSTRUCTIONS.get(opcode.name)
            if act is None:
                raise Problem(
                    "unsupported_format",
                    f"data.pkl holds {opcode.name} at byte {position}, which no state dict needs. "
                    f"{_HOW}",
                )
            act(self, argument)
        raise ValueError("it has no end")

    def push(self, value: Any) -> None:  # noqa: ANN401
        self._stack.append(value)

    def push_container(self, value: Any) -> None:  # noqa: ANN401
        self._containers += 1
        if self._containers > _MOST_CONTAINERS:
            raise ValueError(f"it makes over {_MOST_CONTAINERS} dicts and lists")
        self._stack.append(value)

    def pop_to_mark(self) -> list[Any]:
        start = len(self._stack) - 1
        while self._stack[start] is not _MARK:
            start -= 1
            if start < 0:
                raise ValueError("a mark is missing")
        values = self._stack[start + 1 :]
        del self._stack[start:]
        return values

    def pop(self, count: int) -> list[Any]:
        if len(self._stack) < count:
            raise ValueError("its stack is empty")
        values = self._stack[len(self._stack) - count :]
        del self._stack[len(self._stack) - count :]
        return values

    def remember(self, place: int | None) -> None:
        self._memo[len(self._memo) if place is None else place] = self._stack[-1]

    def recall(self, place: int) -> None:
        self.push(self._memo[place])

    def set_items(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, dict) or len(values) % 2:
            raise ValueError("items are set in what is no dict")
        target.update(_pairs(values))

    def append(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if not isinstance(target, list):
            raise TypeError("values are appended to what is no list")
        target.extend(values)

    def call(self) -> None:
        function, arguments = self.pop(2)
        if not isinstance(function, _Global) or not isinstance(arguments, tuple):
            raise TypeError("it calls what is no function")
        self.push_container(_FUNCTIONS[function.name](*arguments))

    def build(self) -> None:
        # The attributes of a state dict and of a tensor say nothing about its values.
        self.pop(1)
        if not isinstance(self._stack[-1], dict | StoredTensor):
            raise TypeError("it sets the attributes of something else than a state dict")

    def find(self, name: str) -> None:
        if name not in _FUNCTIONS and name not in _STORAGE_DTYPES and name not in _DTYPES:
            raise Problem(
                "unsupported_format", f"data.pkl names {name[:200]!a}, which is no tensor. {_HOW}"
            )
        self.push(_Global(name))

    def find_on_stack(self) -> None:
        module, name = self.pop(2)
        if not isinstance(module, str) or not isinstance(name, str):
            raise TypeError("a name is no text")
        self.find(f"{module}.{name}")

    def load_storage(self) -> None:
        [reference] = self.pop(1)
        kind, storage, key, _, elements = reference
        if kind != "storage" or not isinstance(key, str) or not _is_size(elements):
            raise ValueError("a reference to the archive is damaged")
        dtype = _STORAGE_DTYPES[storage.name]
        if self._dtypes.setdefault(key, dtype) != dtype:
            raise ValueError("bytes are stored under two dtypes")
        self.push(StoredBytes(key, dtype, elements))


_Instruction = Callable[[_Machine, Any], None]


def _ordered_dict() -> dict[Any, Any]:
    return {}


def _tensor(
    storage: StoredBytes,
    first: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    _requires_grad: object = False,
    _hooks: object = None,
    metadata: object = None,
) -> StoredTensor:
    if not isinstance(storage, StoredBytes) or len(shape) != len(strides):
        raise TypeError("a tensor is damaged")
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor has over {_MOST_DIMENSIONS} dimensions")
    if metadata:
        # That its values are to be negated or conjugated, for one.
        raise ValueError("a tensor is a view that torch computes; save it as tensor.clone()")
    sizes = (first, *shape, *strides)
    if not all(_is_size(size) for size in sizes):
        raise ValueError("a tensor has sizes that are none")
    return StoredTensor(storage, storage.dtype, first, tuple(shape), tuple(strides))


def _tensor_with_dtype(
    storage: StoredBytes,
    first: int,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    requires_grad: object,  # noqa: ARG001 - torch's own order
    hooks: object,  # noqa: ARG001
    dtype: _Global,
    metadata: object = None,
) -> StoredTensor:
    found = _tensor(storage, first, shape, strides, metadata=metadata)
    return StoredTensor(storage, _DTYPES[dtype.name], found.first, found.shape, found.strides)


def _parameter(tensor: StoredTensor, *_: object) -> StoredTensor:
    return tensor


def _size(values: Any = ()) -> tuple[Any, ...]:  # noqa: ANN401
    if len(values) > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor has over {_MOST_DIMENSIONS} dimensions")
    return tuple(values)


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


#: What a call of these gives.
_FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_with_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
}


def _instructions() -> Iterator[tuple[str, _Instruction]]:
    for name in ("PROTO", "FRAME"):
        yield name, lambda _machine, _argument: None
    literals = (
        "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE "
        "SHORT_BINUNICODE BINUNICODE8 SHORT_BINBYTES BINBYTES BINBYTES8"
    )
    for name in literals.split():
        yield name, _Machine.push
    constants = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "MARK": _MARK}
    for name, value in constants.items():
        yield name, _constant(value)
    yield "EMPTY_DICT", lambda machine, _: machine.push_container({})
    yield "EMPTY_LIST", lambda machine, _: machine.push_container([])
    yield "EMPTY_TUPLE", lambda machine, _: machine.push(())
    yield "DICT", lambda machine, _: machine.push_container(_pairs(machine.pop_to_mark()))
    yield "LIST", lambda machine, _: machine.push_container(machine.pop_to_mark())
    yield "TUPLE", lambda machine, _: machine.push(tuple(machine.pop_to_mark()))
    for count in (1, 2, 3):
        yield f"TUPLE{count}", _tuple_of(count)
    for name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
        yield name, _Machine.remember
    for name in ("GET", "BINGET", "LONG_BINGET"):
        yield name, _Machine.recall
    yield "SETITEM", lambda machine, _: machine.set_items(machine.pop(2))
    yield "SETITEMS", lambda machine, _: machine.set_items(machine.pop_to_mark())
    yield "APPEND", lambda machine, _: machine.append(machine.pop(1))
    yield "APPENDS", lambda machine, _: machine.append(machine.pop_to_mark())
    yield "GLOBAL", lambda machine, argument: machine.find(argument.replace(" ", "."))
    yield "STACK_GLOBAL", lambda machine, _: machine.find_on_stack()
    yield "BINPERSID", lambda machine, _: machine.load_storage()
    yield "REDUCE", lambda machine, _: machine.call()
    yield "BUILD", lambda machine, _: machine.build()


def _constant(value: object) -> _Instruction:
    return lambda machine, _: machine.push(value)


def _tuple_of(count: int) -> _Instruction:
    return lambda machine, _: machine.push(tuple(machine.pop(count)))


def _pairs(values: list[Any]) -> dict[Any, Any]:
    for key in values[::2]:
        # The hash of a nested tuple takes as long, and as deep a stack, as whoever made it likes.
        if not isinstance(key, str | int | float | None):
            raise TypeError("a key of a dict is neither text nor a number")
    return dict(zip(values[::2], values[1::2], strict=True))


_INSTRUCTIONS = dict(_instructions())
