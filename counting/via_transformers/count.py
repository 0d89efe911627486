"""Parameters, FLOPs and bytes of the parts that a run recorded, each part measured separately.

FLOPs are counted twice, by fvcore's trace and by torch's dispatch; parameters by `numel`; bytes only if attention is
one fused kernel. Matrix products outside these parts are an error.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import nn

from counting.counts import AttentionCore, Counts, LayerCounts, LayerMemory, ModelCounts, MtpCounts, OutsideCounts
from counting.measurements.components import counts_of_modules
from counting.measurements.forward import dispatched_flops
from counting.measurements.live_bytes import layer_memory
from counting.measurements.parameters import count_parameters, moments_by_recipe
from counting.measurements.trace import CORE, core_of, counted, trace
from counting.setup import Setup
from counting.via_transformers.discover import Discovered, LayerGroup
from counting.via_transformers.ops import FOREIGN_ZERO_FLOP_OPS, LayerHandles
from counting.via_transformers.reading.decoders import one_line
from counting.via_transformers.reading.positions import position_field
from counting.via_transformers.run import Call, LayerCall, Recorded
from counting.via_transformers.states.elementwise import elementwise_operations, own_operations
from counting.via_transformers.states.layers import (
    is_causal_square,
    multiplying_blocks,
    parts_with,
    refuse_unknown_states,
)
from counting.via_transformers.states.stand_ins import NotedScan
from counting.via_transformers.structure import (
    experts_in,
    indexers_in,
    label_layer,
    label_outside,
    matrix_weights,
    number_of_experts,
)
from torch_models.errors import UserError


class Traced(NamedTuple):
    """The counts of fvcore's trace for one call."""

    flops: Mapping[str, Counter[str]]  # module name within the call -> FLOPs by kind
    grouped_rows: frozenset[int]  # numbers of rows of its grouped products

    def core_of_parts(self) -> dict[str, int]:
        """FLOPs of the attention core in each module of the called part; "part" is the whole part."""
        return {name.removeprefix("part."): counts[CORE] for name, counts in self.flops.items()}

    def core(self, layer: nn.Module) -> AttentionCore:
        """The attention core of a layer, without the scores of indexers, which are no part of it."""
        counts = Counter(self.flops[""])
        for name in indexers_in(layer):
            counts.subtract(self.flops[f"part.{name}"])
        return core_of(counts)


def count(
    found: Discovered, recorded: Recorded, setup: Setup, scans: Sequence[Sequence[NotedScan]]
) -> dict[str, ModelCounts]:
    """The witnesses "numel", "trace" and "dispatch" of a model over one micro-batch of a resolved `setup`.

    `scans` has those of each group of layers; their functions are replaced, so that their products are not counted.
    Sets the attribute `component` on each module of the model, which the measurements read; nothing else of the model
    is changed. Raises `UserError` naming the op or the module that cannot be counted.
    """
    calls = [_call_of(found, recorded, group) for group in found.groups]
    traced = [_trace(call) for call in calls]
    refuse_unknown_states(found, [bool(of_call.core_of_parts().get("part")) for of_call in traced], scans)
    _label(found, traced, scans)
    kinds = names_of_kinds(found)
    return {
        "numel": count_numel(found, kinds, traced, setup),
        "trace": count_by_trace(found, recorded, kinds, calls, traced),
        "dispatch": count_by_dispatch(found, recorded, kinds, calls, scans),
    }


# --- The witnesses -------------------------------------------------------------------------------------------------


def count_numel(found: Discovered, kinds: Sequence[str], traced: Sequence[Traced], setup: Setup) -> ModelCounts:
    """Parameters by `numel`, and by recipe from their shapes the bytes of the optimiser's moments.

    The number of experts that one token visits comes from the trace.
    """
    recipe = (setup.precision_recipe, setup.optimizer_recipe)
    layers, moments_in_layers = [], 0
    for group, kind, of_call in zip(found.groups, kinds, traced, strict=True):
        moments = moments_by_recipe(group.layer, *recipe)
        moments_in_layers += moments * group.number
        inactive = [_inactive(experts, of_call, setup.tokens) for experts in experts_in(group.layer).values()]
        layers.append(
            LayerCounts(
                kind=kind,
                count=group.number,
                parameters=count_parameters(group.layer),
                inactive_parameters=sum(inactive),
                linear_weights=matrix_weights(group.layer),
                router_correction_bias=0,
                moment_bytes=moments,
            )
        )
    in_layers = sum((count_parameters(group.layer) * group.number for group in found.groups), Counts())
    return ModelCounts(
        layers=tuple(layers),
        outside=OutsideCounts(
            parameters=count_parameters(found.model) - in_layers,
            moment_bytes=moments_by_recipe(found.model, *recipe) - moments_in_layers,
        ),
        mtp=MtpCounts(parameters=Counts(), linear_weights=0, router_correction_bias=0, moment_bytes=0),
    )


def count_by_trace(
    found: Discovered, recorded: Recorded, kinds: Sequence[str], calls: Sequence[Call], traced: Sequence[Traced]
) -> ModelCounts:
    """Forward FLOPs by fvcore's trace, and the attention core in them."""
    rows = zip(found.groups, kinds, calls, traced, strict=True)
    outside = Counts()
    for call in _parts_with_products(found, recorded):
        outside += counts_of_modules(call, counted(_trace(call).flops))
    return ModelCounts(
        layers=tuple(
            LayerCounts(
                kind=kind,
                count=group.number,
                forward_flops=counts_of_modules(call, counted(of_call.flops)),
                attention_core_flops=of_call.core(group.layer) if is_causal_square(group) else AttentionCore(),
            )
            for group, kind, call, of_call in rows
        ),
        outside=OutsideCounts(forward_flops=outside),
        mtp=MtpCounts(forward_flops=Counts(), attention_core_flops=AttentionCore()),
    )


def count_by_dispatch(
    found: Discovered,
    recorded: Recorded,
    kinds: Sequence[str],
    calls: Sequence[Call],
    scans: Sequence[Sequence[NotedScan]],
) -> ModelCounts:
    """Forward FLOPs by torch's dispatch, the scans' elementwise operations, and the layers' bytes if they have none.

    Bytes are counted where attention is one kernel, and no scan is replaced.
    """
    outside = Counts()
    for call in _parts_with_products(found, recorded):
        outside += dispatched_flops(call, call.tensors)
    layers = []
    for group, kind, call, of_layer in zip(found.groups, kinds, calls, scans, strict=True):
        in_one_kernel = not of_layer and not recorded.in_one_kernel.isdisjoint(call.part.modules())
        layers.append(
            LayerCounts(
                kind=kind,
                count=group.number,
                forward_flops=dispatched_flops(call, call.tensors),
                elementwise_operations=sum(map(elementwise_operations, of_layer))
                + own_operations(call, call.tensors, multiplying_blocks(group.layer)),
                peak_memory_bytes=_memory(call, grad=True) if in_one_kernel else None,
                peak_memory_no_grad_bytes=_memory(call, grad=False) if in_one_kernel else None,
            )
        )
    return ModelCounts(
        layers=tuple(layers), outside=OutsideCounts(forward_flops=outside), mtp=MtpCounts(forward_flops=Counts())
    )


# --- Their parts ---------------------------------------------------------------------------------------------------


def _call_of(found: Discovered, recorded: Recorded, group: LayerGroup) -> Call:
    call = recorded.layers.get(group.first)
    if call is None or not call.tensors:
        raise UserError(f"layer {group.first} is not called in a forward pass")
    return call


def _trace(call: Call) -> Traced:
    handles = LayerHandles(call.part, call.tensors[0].shape[1] if call.tensors[0].dim() > 1 else 1)
    try:
        flops = trace(call, call.tensors, handles.handles(), FOREIGN_ZERO_FLOP_OPS)
    except (AssertionError, RuntimeError) as error:  # ours, or the tracer's own
        raise UserError(one_line(error)) from None
    return Traced(flops, frozenset(handles.grouped_rows))


def _label(found: Discovered, traced: Sequence[Traced], scans: Sequence[Sequence[NotedScan]]) -> None:
    """Give every module its component."""
    mixers = {
        group.first: {name for name, flops in of_call.core_of_parts().items() if flops} | parts_with(group.layer, scan)
        for group, of_call, scan in zip(found.groups, traced, scans, strict=True)
    }
    for layer, like in zip(found.layers, found.first_alike, strict=True):
        label_layer(layer, mixers[like])
    label_outside(found.model, found.layers, position_field(found.model.config)[1])


def names_of_kinds(found: Discovered) -> list[str]:
    """A name for each group: "dense" or "moe", the config's layer type, and a number if the name is not unique."""
    seen: Counter[str] = Counter()
    names = []
    for group in found.groups:
        name = "moe" if experts_in(group.layer) else "dense"
        if group.kind and group.kind != name:
            name = f"{name}, {group.kind}"
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return names


def _inactive(experts: nn.Module, traced: Traced, tokens: int) -> int:
    """Parameters of the experts that a token does not visit; the rows of the products show how many it visits."""
    total, rows = number_of_experts(experts), next(iter(traced.grouped_rows), 0)
    if len(traced.grouped_rows) != 1 or rows % tokens:
        raise UserError(f"{type(experts).__name__} is not computed by grouped products of one number of rows")
    return sum(weight.numel() for weight in experts.parameters()) // total * (total - rows // tokens)


def _memory(call: Call, *, grad: bool) -> LayerMemory:
    stream, *shared = call.tensors
    call.part.train()
    try:
        return layer_memory(LayerCall(call), stream, tuple(shared), grad=grad)
    finally:
        call.part.eval()


def _parts_with_products(found: Discovered, recorded: Recorded) -> list[Call]:
    """The parts outside the layers that multiply matrices, such as the head.

    Raises `UserError` if there are products outside these and the layers.
    """
    parts = [call for call in recorded.outside.values() if recorded.flops.get(call.part)]
    accounted = {module for group in found.groups for module in group.layer.modules()}
    accounted |= {call.part for call in parts}
    elsewhere = sum(flops for module, flops in recorded.flops.items() if module not in accounted)
    if elsewhere:
        raise UserError(f"{elsewhere:,} FLOPs of its forward pass lie outside its layers and its linear parts")
    return parts
