"""The graph of an exported program as a module that computes in float32 and can be trained.

`ExportedProgram.module()` keeps the dtypes that it was exported with, has a copy of every tied
parameter, and refuses `train()`; so the graph is called by itself, with the tensors that it takes.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.fx.node import map_aggregate

from evaluation.weight_files import DTYPES
from jobs.problems import Problem
from training.checkpointed_graphs import checkpointed
from training.fake_rounding import WeightRounding, straight_through

#: What it is computed in, instead of what the program has.
WIDENED = {torch.float16: torch.float32, torch.bfloat16: torch.float32}


class ProgramGraph(torch.nn.Module):
    """A program's graph with its tensors.

    Args:
        exported: The program; its graph is changed, and its tensors are taken where they have the
            right dtype already.
        shared: By the name of a parameter, all names that it has.
        device: Where it computes.
    """

    def __init__(
        self, exported: ExportedProgram, shared: Mapping[str, tuple[str, ...]], device: str
    ) -> None:
        super().__init__()
        self._graph: torch.nn.Module = _adapted(exported.graph_module, torch.device(device))
        held = {**exported.state_dict, **exported.constants}
        self._homes = {other: name for name, names in shared.items() for other in names}
        self._places: dict[str, str] = {}
        # What each of the graph's own arguments is: a tensor's name, an input's, or a constant.
        self._arguments: list[tuple[str, Any]] = []
        for spec in exported.graph_signature.input_specs:
            if spec.target is None:
                constant = getattr(spec.arg, "value", None)
                self._arguments.append(("input", (spec.arg.name, constant)))
                continue
            name = self._homes.get(spec.target, spec.target)
            self._hold(name, held[spec.target], torch.device(device))
            self._arguments.append(("tensor", self._places[name]))

    def parameter(self, name: str) -> torch.nn.Parameter:
        """Give a parameter by one of the names that the program has for it."""
        return self.get_parameter(self._places[self._homes.get(name, name)])

    def round_weights(self, turned: Mapping[str, bool], dtypes: Mapping[str, str]) -> None:
        """Have operators take weights as they will be rounded, in place; not after `checkpoint`.

        What is rounded is kept until gradients need it, unless activations are computed again.

        Args:
            turned: By its name, whether a weight's channels are its columns.
            dtypes: By its name, in what the program stores it.
        """
        if not isinstance(self._graph, GraphModule):
            return
        chosen = {self._places[self._homes.get(name, name)]: name for name in turned}
        graph = self._graph.graph
        nodes = [node for node in graph.nodes if node.op == "placeholder"]
        for node, (kind, place) in zip(nodes, self._arguments, strict=True):
            if kind == "tensor" and place in chosen:
                name = chosen[place]
                for user in [user for user in node.users if user.op == "call_function"]:
                    with graph.inserting_before(user):
                        given = (node, dtypes[name], turned[name])
                        user.replace_input_with(node, graph.call_function(rounded_weight, given))
        self._graph.recompile()

    def checkpoint(self) -> bool:
        """Have activations computed again where gradients need them; False where it cannot."""
        if isinstance(self._graph, GraphModule):
            found = checkpointed(self._graph)
            if found is None:
                return False
            self._graph = found
        return True

    def forward(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Run the program.

        Args:
            inputs: By name, all of them, floats in float32 where the program has 16 bits.

        Returns:
            Its first output that is a float tensor with a dimension.

        Raises:
            Problem: `finetune_unsupported`: there is none.
        """
        given = (
            getattr(self, what) if kind == "tensor" else inputs.get(*what)
            for kind, what in self._arguments
        )
        for output in self._graph(*given):
            if isinstance(output, torch.Tensor) and output.is_floating_point() and output.ndim:
                return output
        raise Problem("finetune_unsupported", "The program gives no float tensor to learn.")

    def _hold(self, name: str, tensor: torch.Tensor, device: torch.device) -> None:
        if name in self._places:
            return
        # A name comes from a stranger's file, so it names no attribute here.
        place = self._places[name] = f"tensor_{len(self._places)}"
        values = tensor.detach().to(device, WIDENED.get(tensor.dtype, tensor.dtype))
        if isinstance(tensor, torch.nn.Parameter) and values.is_floating_point():
            self.register_parameter(place, torch.nn.Parameter(values.contiguous()))
        else:
            self.register_buffer(place, values)


def rounded_weight(weight: torch.Tensor, dtype: str, is_turned: bool) -> torch.Tensor:
    """Give a weight as the artifact's graph will compute with it; gradients go straight through.

    Args:
        weight: float32.
        dtype: In what the program stores it, as safetensors names it.
        is_turned: Whether its channels are its columns.

    Returns:
        Another tensor.
    """
    rounding = WeightRounding(dtype, DTYPES[dtype], is_transposed=is_turned)
    return straight_through(weight, rounding)


def _adapted(graph_module: GraphModule, device: torch.device) -> GraphModule:
    """Have a graph compute in float32, and on a device."""
    replaced: dict[Any, Any] = {**WIDENED, torch.device("cpu"): device}

    def replace(leaf: Any) -> Any:  # noqa: ANN401 - whatever a node is given
        is_named = isinstance(leaf, torch.dtype | torch.device)
        return replaced.get(leaf, leaf) if is_named else leaf

    for node in graph_module.graph.nodes:
        node.args = map_aggregate(node.args, replace)
        node.kwargs = map_aggregate(node.kwargs, replace)
    graph_module.recompile()
    return graph_module
