"""Decoder layers as torch's compiler runs them, each compiled by itself: what they keep and allocate. An estimate.

A layer is traced with its backward pass, and torch's own partitioner cuts the two apart
(`min_cut_rematerialization_partition` of torch/_functorch/partitioners.py): it keeps for backward what is cheapest to
keep, and nothing that no gradient needs. What recomputation says is noted on the operations, as torch notes it when it
compiles a checkpointed layer. The two graphs are then run by the rule of fused_graph.py, without generating code.
Embedding, final norm, head, loss and multi-token prediction run op by op, as in torchtitan.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from counting.measurements.allocations.fused_graph import FURTHER_FUSED, FusedGraph
from counting.setup import Setup
from torch_models.builder import creating
from torch_models.modules.decoder import Decoder, DecoderLayer
from torch_models.modules.layers import RotaryTables
from torch_models.modules.recompute import per_op_contexts
from torch_models.recomputed_layers import recompute_of_layer, unmarked
from torch_models.spec import LayerSpec, Recompute


class _Graphs(NamedTuple):
    """Forward and backward of a layer; forward returns the output, then what backward is given first."""

    forward: FusedGraph
    backward: FusedGraph


def import_compiler() -> None:
    """Import what compiling needs of torch; inside `measuring` torch's compiler may have a stand-in."""
    import torch._dynamo
    import torch._inductor.decomposition  # noqa: F401


def compile_layers(decoder: Decoder, setup: Setup, dtype: torch.dtype) -> None:
    """Let every decoder layer run as compiled, in `dtype`; call it inside `measuring`, after `import_compiler`."""
    graphs: dict[tuple[LayerSpec, Recompute], _Graphs] = {}
    tables = decoder.rotary_tables(torch.empty(*setup.micro_batch, dtype=torch.long, device="meta"))
    for index in range(decoder.num_layers):
        layer = decoder.layers[index]
        assert isinstance(layer, DecoderLayer)
        recompute = layer.spec.recompute or recompute_of_layer(setup.recompute, index)
        key = unmarked(layer.spec), recompute
        if key not in graphs:
            rotary = tables[decoder.tables_of_layers[index]]
            graphs[key] = traced_layer(*key, setup, rotary, dtype)
        layer.forward = _forward_of(layer, graphs[key])  # type: ignore[method-assign,assignment]


def _forward_of(layer: nn.Module, graphs: _Graphs) -> Callable[[Tensor, RotaryTables], Tensor]:
    def forward(x_BSD: Tensor, rotary: RotaryTables) -> Tensor:
        inputs = (x_BSD, *rotary, *layer.parameters(), *layer.buffers())
        out: Tensor = _Compiled.apply(graphs, *inputs)  # type: ignore[no-untyped-call]
        return out

    return forward


class _Compiled(torch.autograd.Function):
    """A layer as one function; what backward is given is freed as backward uses it up."""

    @staticmethod
    def forward(ctx: Any, graphs: _Graphs, *inputs: Tensor) -> Tensor:
        out, *saved = graphs.forward.run(list(inputs))
        ctx.graphs = graphs
        ctx.save_for_backward(*saved)
        result: Tensor = out.data  # no view, even where it took the place of another tensor
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        saved = list(ctx.saved_tensors)
        ctx.maybe_clear_saved_tensors()
        return None, *ctx.graphs.backward.run([*saved, gradient])


def traced_layer(
    spec: LayerSpec, recompute: Recompute, setup: Setup, rotary: RotaryTables, dtype: torch.dtype
) -> _Graphs:
    """Trace a layer like this and its backward pass, and cut them apart."""
    from torch._functorch._aot_autograd.utils import make_boxed_func
    from torch._functorch.aot_autograd import aot_function
    from torch._functorch.partitioners import get_default_op_list, min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    with creating("meta", dtype):
        layer = DecoderLayer(spec, setup.kernels)
    x = torch.empty(*setup.micro_batch, spec.hidden_size, device="meta", dtype=dtype, requires_grad=True)
    names = [name for name, _ in (*layer.named_parameters(), *layer.named_buffers())]
    found: list[torch.fx.GraphModule] = []

    def run(x: Tensor, *further: Tensor) -> Any:
        tables, tensors = further[: len(rotary)], further[len(rotary) :]
        with _noted(spec, recompute):
            return torch.func.functional_call(layer, dict(zip(names, tensors, strict=True)), (x, tables))

    def keep(gm: torch.fx.GraphModule, example_inputs: object) -> Any:
        found.append(gm)
        return make_boxed_func(partial(_outputs_of, gm))

    traced = aot_function(
        run, keep, keep, partition_fn=min_cut_rematerialization_partition, decompositions=select_decomp_table()
    )
    with _elementary_norm():
        out = traced(x, *rotary, *layer.parameters(), *layer.buffers())
        torch.autograd.backward(out, torch.empty_like(out))
    fusible = {*get_default_op_list().fusible_ops, *FURTHER_FUSED}

    def is_fused(op: Any) -> bool:
        return getattr(op, "overloadpacket", op) in fusible

    forward, backward = (FusedGraph(module, is_fused) for module in found)
    pairs = zip(forward.outputs[1:], backward.inputs[:-1], strict=True)
    given = [(node and node.name, placeholder.name) for node, placeholder in pairs]
    assert all(kept == name or name.startswith("rng_state") for kept, name in given), "what forward keeps, in its order"
    return _Graphs(forward, backward)


def _outputs_of(graph: torch.fx.GraphModule, *inputs: object) -> list[Tensor | None]:
    """Outputs of the graph without values; it is not run."""
    (output,) = (node for node in graph.graph.nodes if node.op == "output")
    values = (None if node is None else node.meta.get("val") for node in output.args[0])
    return [
        x if x is None else torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device) for x in values
    ]


@contextlib.contextmanager
def _elementary_norm() -> Iterator[None]:
    """Context in which norms run as elementary operations, of which the compiler generates code."""
    before = F.rms_norm
    F.rms_norm = torch.rms_norm
    try:
        yield
    finally:
        F.rms_norm = before


def _noted(spec: LayerSpec, recompute: Recompute) -> AbstractContextManager[Any]:
    """Context that notes on each traced operation whether its result is kept, as torch does when it compiles."""
    if recompute == "none":
        return contextlib.nullcontext()
    assert recompute in ("per_op", "full"), "checked before"
    contexts = per_op_contexts(spec) if recompute == "per_op" else create_selective_checkpoint_contexts(_again)
    noting: AbstractContextManager[Any] = contexts[0]
    noting.ac_graph_id = 0  # type: ignore[attr-defined]
    return noting


def _again(context: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
    return CheckpointPolicy.PREFER_RECOMPUTE
