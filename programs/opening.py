"""Whether torch opens a program, and what its graph gives, found out without computing a value."""

from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from evaluation.faults import blamed_on
from jobs.program import open_program
from programs.loading import example_shape, load_program


def give_shapes(path: Path) -> list[tuple[list[int], str]]:
    """Open a program with plain torch, and have its graph tell the shapes of what it gives.

    Args:
        path: The file, as this project writes it.

    Returns:
        Shape and dtype of each tensor that it gives, for inputs of some shape that it takes.

    Raises:
        Problem: `evaluation_failed`: torch does not open it, or an operator does not take what it
            is given.
    """
    described, exported = open_program(path), load_program(path)
    held = {**exported.state_dict, **exported.constants}
    values = described.graph["tensor_values"]
    with (
        blamed_on("evaluation_failed", "The graph does not fit together"),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
    ):
        given: list[Any] = []
        for spec in exported.graph_signature.input_specs:
            name = spec.arg.name
            if spec.target is not None:
                given.append(mode.from_tensor(held[spec.target]))
            elif name in values:
                dtype = next(n for n in exported.graph.nodes if n.name == name).meta["val"].dtype
                given.append(torch.empty(example_shape(described, name), dtype=dtype))
            else:
                given.append(getattr(spec.arg, "value", None))
        outputs = torch.fx.Interpreter(exported.graph_module).run(*given)
    return [(list(one.shape), str(one.dtype)) for one in outputs if isinstance(one, torch.Tensor)]
