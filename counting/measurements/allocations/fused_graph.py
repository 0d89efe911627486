"""A graph of torch's compiler, run with the tensors that its generated code allocates. An estimate by a rule.

Elementwise operations and sums are generated code: where only such code reads a result, it is computed where it is read
and never stored. Stored are what a kernel of a library reads, a product or attention, and what the graph returns.
Results of as many numbers that read the same tensor are one kernel, at the place of the first. A result takes the place
of a tensor of its size and dtype that is read there for the last time. Every tensor is freed after its last use. The
rule follows torch/_inductor (`realize_hint` in graph.py, fusion and `decide_inplace_update` in scheduler.py), which
also weighs the number of reads and of operations.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, fx

_aten: Any = torch.ops.aten
_VIEWS = ("_unsafe_view", "alias", "detach", "expand", "permute", "reshape", "select", "slice", "split", "squeeze")
VIEWS = frozenset((*_VIEWS, "split_with_sizes", "t", "transpose", "unsqueeze", "view", "as_strided", "unbind"))
RANDOM_STATE = 16  # bytes of CUDA's, on the host
FURTHER_FUSED = frozenset((_aten.cat, _aten.embedding, _aten.index_select, _aten.constant_pad_nd, _aten.cumsum))


class _Step(NamedTuple):
    """Operations that run together: one kernel or view, or the results of one generated kernel."""

    nodes: tuple[fx.Node, ...]
    reads: tuple[fx.Node, ...]
    generated: bool


class FusedGraph:
    """A graph of one pass; `is_fused` says whether the compiler generates code for an op."""

    def __init__(self, module: fx.GraphModule, is_fused: Callable[[Any], bool]) -> None:
        self._is_fused = is_fused
        nodes = list(module.graph.nodes)
        self.inputs = [node for node in nodes if node.op == "placeholder"]
        (output,) = (node for node in nodes if node.op == "output")
        self.outputs: Sequence[fx.Node | None] = output.args[0]
        self._constants = {node: getattr(module, node.target) for node in nodes if node.op == "get_attr"}
        self._place = {node: index for index, node in enumerate(nodes)}
        self._steps = self._ordered([node for node in nodes if node.op == "call_function"])
        self._last_step: dict[fx.Node, int] = {}
        self._last_of_base: dict[fx.Node, int] = {}
        for index, step in enumerate(self._steps):
            for node in step.reads:
                self._last_step[node] = index
                self._last_of_base[self._base(node)] = index
        for node in self.outputs:
            if node is not None:
                self._last_step[node] = self._last_of_base[self._base(node)] = len(self._steps)

    # --- What is stored ----------------------------------------------------------------------------------------------

    def _is_view(self, node: fx.Node) -> bool:
        if node.target is operator.getitem:
            return not self._is_part(node)
        packet = getattr(node.target, "overloadpacket", None)
        return packet is not None and packet._qualified_op_name.split("::")[-1] in VIEWS

    def _is_generated(self, node: fx.Node) -> bool:
        if self._is_part(node):
            return True
        return node.op == "call_function" and not self._is_view(node) and self._is_fused(node.target)

    def _is_part(self, node: fx.Node) -> bool:
        """Whether this is one of several results of generated code, as the mean of a LayerNorm's rows."""
        return node.target is operator.getitem and self._is_generated(node.all_input_nodes[0])

    def _is_stored(self, node: fx.Node) -> bool:
        """Whether the result of generated code is read by anything but generated code."""
        for user in node.users:
            if user.op == "output" or not (self._is_view(user) or self._is_generated(user)):
                return True
            if self._is_view(user) and self._is_stored(user):
                return True
        return False

    def _exists(self, node: fx.Node) -> bool:
        if self._is_view(node):
            return self._exists(node.all_input_nodes[0])
        return not self._is_generated(node) or self._is_stored(node)

    def _sources(self, node: fx.Node, found: dict[fx.Node, None]) -> dict[fx.Node, None]:
        """The stored tensors that generated code reads for a result."""
        for read in node.all_input_nodes:
            if self._exists(read):
                found[read] = None
            else:
                self._sources(read, found)
        return found

    def _base(self, node: fx.Node) -> fx.Node:
        """The node that has allocated the memory of a stored tensor."""
        if not self._is_view(node):
            return node
        read = node.all_input_nodes[0]
        is_output = node.target is operator.getitem and not self._is_view(read) and not self._is_generated(read)
        return node if is_output else self._base(read)

    def _ordered(self, nodes: Sequence[fx.Node]) -> list[_Step]:
        """The steps in the order of the graph; what one generated kernel can compute is joined."""
        stored = [node for node in nodes if self._exists(node)]
        sources = {node: tuple(self._sources(node, {})) for node in stored if self._is_generated(node)}
        steps: list[_Step] = []
        done: set[fx.Node] = set()
        for node in stored:
            if node in done:
                continue
            if node not in sources:
                steps.append(_Step((node,), tuple(node.all_input_nodes), False))
                continue
            together = [other for other in sources if other not in done and self._joins(node, other, sources)]
            done.update(together)
            reads = dict.fromkeys(read for other in together for read in sources[other])
            steps.append(_Step(tuple(together), tuple(reads), True))
        return steps

    def _joins(self, node: fx.Node, other: fx.Node, sources: dict[fx.Node, tuple[fx.Node, ...]]) -> bool:
        if node is other:
            return True
        if _numel(node) != _numel(other) or any(self._place[read] > self._place[node] for read in sources[other]):
            return False
        bases = {self._base(read) for read in sources[node]}
        return any(self._base(read) in bases for read in sources[other])

    # --- Running it --------------------------------------------------------------------------------------------------

    def run(self, arguments: list[Any]) -> list[Any]:
        """Return the outputs; `arguments` is emptied, so that they can be freed."""
        values: dict[fx.Node, Any] = dict(zip(self.inputs, arguments, strict=True)) | self._constants
        arguments.clear()
        for node in self.inputs:
            if node not in self._last_step:
                del values[node]
        for index, step in enumerate(self._steps):
            if step.generated:
                self._generate(index, step, values)
            else:
                (node,) = step.nodes
                values[node] = _call(node, values)
            for node in (*step.reads, *step.nodes):
                if self._last_step.get(node, -1) <= index:
                    values.pop(node, None)
        return [None if node is None else values[node] for node in self.outputs]

    def _generate(self, index: int, step: _Step, values: dict[fx.Node, Any]) -> None:
        """Make the results of a generated kernel, in place of what is read for the last time."""
        ends: dict[fx.Node, Tensor] = {}
        for read in step.reads:
            base = self._base(read)
            if self._last_of_base[base] == index and base.op != "placeholder" and base not in ends:
                ends[base] = values[read]
        for node in step.nodes:
            like = node.meta["val"]
            replaced = next((base for base, x in ends.items() if _takes_place(like, x)), None)
            if replaced is None:
                values[node] = torch.empty_strided(like.shape, like.stride(), dtype=like.dtype, device=like.device)
            else:
                values[node] = ends.pop(replaced).as_strided(like.shape, like.stride(), 0)


def _numel(node: fx.Node) -> int:
    value = node.meta["val"]
    return value.numel() if isinstance(value, Tensor) else 0


def _takes_place(like: Tensor, x: Tensor) -> bool:
    size = like.numel() * like.dtype.itemsize
    return x.dtype == like.dtype and x.untyped_storage().nbytes() == size


def _call(node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    found: Any = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    (arguments, options), op = found, cast(Callable[..., Any], node.target)
    name = getattr(op, "__name__", "")
    if name == "run_and_save_rng_state":  # of an op that could draw random numbers, and is to run again in backward
        op, *arguments = arguments
        return torch.empty(RANDOM_STATE, dtype=torch.uint8, device="cpu"), op(*arguments, **options)
    if name == "run_with_rng_state":
        _, op, *arguments = arguments
    return op(*arguments, **options)
