"""Programs opened by torch, which runs what they say: so only inside of a sandbox."""

import os
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from evaluation.faults import blamed_on
from jobs.problems import Problem
from jobs.program import Program, open_program

#: How many places a dimension has that varies, where nothing else says so.
_ROWS = 2


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Open a program with plain torch, as a user does.

    Args:
        path: The file.

    Returns:
        The program.

    Raises:
        Problem: `evaluation_failed`: torch does not open it.
    """
    # Whatever falls back to unpickling anything is to fail instead.
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    with blamed_on("evaluation_failed", "torch.export.load does not open the program"):
        return torch.export.load(str(path))


class LoadedProgram:
    """A program that was opened to be run.

    Args:
        path: The file, as this project writes it.

    Attributes:
        described: What the file says of it.
    """

    described: Program

    def __init__(self, path: Path) -> None:
        self.described = open_program(path)
        self.exported = load_program(path)
        self._call = self.exported.module()

    @property
    def weight_bytes(self) -> int:
        """What its tensors take in memory, each once."""
        held = [*self.exported.state_dict.values(), *self.exported.constants.values()]
        tensors = {t.data_ptr(): t for t in held if isinstance(t, torch.Tensor)}
        return sum(tensor.nbytes for tensor in tensors.values())

    def call(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Run it.

        Args:
            inputs: By name, all of them.

        Returns:
            Its first output that is a float tensor with a dimension.

        Raises:
            Problem: `evaluation_failed`: there is none.
        """
        leaves = [inputs.get(name, value) for name, value in self._leaves()]
        tree = self.exported.call_spec.in_spec
        if tree is None:
            raise Problem("evaluation_failed", "The program does not say how it is called.")
        positional, named = pytree.tree_unflatten(leaves, tree)
        for output in pytree.tree_leaves(self._call(*positional, **named)):
            if isinstance(output, torch.Tensor) and output.is_floating_point() and output.ndim:
                return output
        raise Problem("evaluation_failed", "The program gives no float tensor to compare.")

    def _leaves(self) -> list[tuple[str, Any]]:
        specs = self.described.document["graph_module"]["signature"]["input_specs"]
        leaves: list[tuple[str, Any]] = []
        for spec in specs:
            [(kind, members)] = spec.items()
            if kind == "constant_input":
                [value] = members["value"].values()
                leaves.append(("", None if "as_none" in members["value"] else value))
            elif kind == "user_input":
                name = members["arg"].get("as_tensor", {}).get("name")
                if name is None:
                    raise Problem(
                        "evaluation_failed",
                        "The program takes a number beside its tensors; export it with tensors "
                        "alone to have it run.",
                    )
                leaves.append((name, None))
        return leaves


def example_shape(described: Program, name: str, rows: int | None = None) -> list[int]:
    """Give a shape that an input may have.

    Args:
        described: The program.
        name: The input's name.
        rows: How many rows, where that may vary.

    Returns:
        The shape; sizes that vary are those the program was exported with, within its limits.
    """
    sizes = described.graph["tensor_values"][name]["sizes"]
    return [
        size["as_int"] if "as_int" in size else _some(described, size["as_expr"], rows, place)
        for place, size in enumerate(sizes)
    ]


def row_limits(described: Program) -> tuple[int, int]:
    """Give how many rows the program takes at once: the least, and the most."""
    first = described.graph["tensor_values"][described.inputs[0]]["sizes"][:1]
    if not first:
        raise Problem("evaluation_failed", "The program's first input has no dimension for rows.")
    if "as_int" in first[0]:
        return first[0]["as_int"], first[0]["as_int"]
    return _range(described, first[0]["as_expr"])


def _some(described: Program, expression: Any, rows: int | None, place: int) -> int:  # noqa: ANN401
    least, most = _range(described, expression)
    hint = ((expression.get("hint") or {}).get("as_int")) or _ROWS
    wanted = rows if rows is not None and place == 0 else hint
    return int(max(least, min(wanted, most)))


def _range(described: Program, expression: Any) -> tuple[int, int]:  # noqa: ANN401
    for symbol, limits in described.document["range_constraints"].items():
        if f"Symbol('{symbol}'" in expression["expr_str"]:
            return max(1, limits["min_val"] or 1), limits["max_val"] or 2**31
    return 1, 2**31
