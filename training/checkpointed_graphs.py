"""A graph cut into parts whose activations are computed again where gradients need them.

As many parts as operators in each, so that what is kept grows with the root of their number (Chen
et al., 2016, arXiv:1604.06174, section 3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg
from torch.utils.checkpoint import checkpoint

#: Operators whose result is no other value's memory.
_FRESH = frozenset(
    """
    adaptive_avg_pool2d add addmm avg_pool2d batch_norm bmm cat clone conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d convolution div group_norm hardswish
    layer_norm linear matmul max_pool2d mm mul relu silu sub
    """.split()  # noqa: SIM905 - a list reads worse
)
_LEAST_NODES = 4


@dataclass(frozen=True)
class _Part:
    """Some operators that follow one another.

    Attributes:
        module: Computes them.
        taken: What they need of before, in order.
        made: What others need of them, in order.
        over: What nothing needs after them.
    """

    module: GraphModule
    taken: Sequence[Node]
    made: Sequence[Node]
    over: Sequence[Node]


class CheckpointedGraph(torch.nn.Module):
    """Computes what a graph does, and keeps what its parts hand on alone.

    Args:
        graph_module: Gives a tuple, and changes no value in place.
    """

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__()
        nodes = [node for node in graph_module.graph.nodes if node.op == "call_function"]
        size = math.isqrt(len(nodes) - 1) + 1
        groups = [nodes[start : start + size] for start in range(0, len(nodes), size)]
        self._inputs = [node for node in graph_module.graph.nodes if node.op == "placeholder"]
        [self._output] = [node for node in graph_module.graph.nodes if node.op == "output"]
        last_uses = _last_uses(groups, self._output)
        self._parts = [
            _part(graph_module, group, [node for node, last in last_uses.items() if last == number])
            for number, group in enumerate(groups)
        ]

    def forward(self, *given: Any) -> Any:  # noqa: ANN401 - whatever the graph takes and gives
        """Run the graph; the last part's activations are needed at once, so they are kept."""
        values: dict[Node, Any] = dict(zip(self._inputs, given, strict=True))
        for number, part in enumerate(self._parts):
            taken = [values[node] for node in part.taken]
            is_last = number == len(self._parts) - 1
            made = (
                part.module(*taken)
                if is_last
                else checkpoint(part.module, *taken, use_reentrant=False)
            )
            values.update(zip(part.made, made, strict=True))
            for node in part.over:
                values.pop(node, None)
        return map_arg(self._output.args[0], lambda node: values[node])


def checkpointed(graph_module: GraphModule) -> CheckpointedGraph | None:
    """Have a graph compute its activations again.

    Args:
        graph_module: The graph; operators that change what nobody else needs are replaced in it.

    Returns:
        What computes the same; None where an operator changes a value in place that others may
        need, or where there is too little to cut.
    """
    nodes = [node for node in graph_module.graph.nodes if node.op == "call_function"]
    if len(nodes) < _LEAST_NODES or not _make_pure(nodes):
        return None
    graph_module.recompile()
    return CheckpointedGraph(graph_module)


def _make_pure(nodes: Sequence[Node]) -> bool:
    """Replace operators that work in place by those that do not, where that is the same."""
    pure: dict[Node, Any] = {}
    for node in nodes:
        name = _name(node.target)
        if not name.endswith("_") or name.endswith("__"):
            continue
        taken = node.args[0] if node.args else None
        if not isinstance(taken, Node) or len(taken.users) != 1:
            return False
        packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
        overload = getattr(packet, getattr(node.target, "_overloadname", ""), None)
        if overload is None or _name(pure.get(taken, taken.target)) not in _FRESH:
            return False
        pure[node] = overload
    for node, target in pure.items():
        node.target = target
    return True


def _name(target: Any) -> str:  # noqa: ANN401 - an operator, or a function
    if isinstance(target, torch._ops.OpOverload):  # noqa: SLF001 - it has no other name
        return target._schema.name.removeprefix("aten::")  # noqa: SLF001
    return ""


def _last_uses(groups: Sequence[Sequence[Node]], output: Node) -> dict[Node, int]:
    found: dict[Node, int] = {}
    for number, group in enumerate(groups):
        for node in group:
            found.update(dict.fromkeys(node.all_input_nodes, number))
    for node in output.all_input_nodes:
        found.pop(node, None)
    return found


def _part(root: GraphModule, group: Sequence[Node], over: Sequence[Node]) -> _Part:
    own = set(group)
    taken = list(
        dict.fromkeys(given for node in group for given in node.all_input_nodes if given not in own)
    )
    made = [node for node in group if any(user not in own for user in node.users)]
    graph = Graph()
    copies = {node: graph.placeholder(node.name) for node in taken}
    for node in group:
        copies[node] = graph.node_copy(node, lambda given: copies[given])
    graph.output(tuple(copies[node] for node in made))
    return _Part(GraphModule(root, graph), taken, made, over)
