"""The measurement of a model that has no module and no formula here: transformers builds it on the meta device.

The whole model is built, which takes milliseconds per layer, because only transformers knows what each layer is; its
parameters are counted from that. One layer of each distinct kind runs: a forward pass of the model, in which the
others hand their input on, shows what every part is given, and each part is then measured twice by itself, by
fvcore's trace and by torch's dispatch counter. Nothing outside those parts may multiply matrices.
"""

import contextlib
from collections import Counter
from typing import Any

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten
from torch.utils.flop_counter import FlopCounterMode

from counting.counts import Counts, LayerCounts, LayerMemory, ModelCounts, MtpCounts
from counting.measurements.components import counts_of_modules
from counting.measurements.live_bytes import layer_memory
from counting.measurements.meta_device import cuda_kernels_on_meta
from counting.measurements.parameters import linear_weights, parameter_counts
from counting.measurements.trace import CORE, core_of, counted, dispatched_flops, dispatched_grouped_mm, trace
from counting.via_transformers.config import ForeignModel, no_count_of, one_line, quiet
from counting.via_transformers.ops import FOREIGN_ZERO_FLOP_OPS, LayerHandles
from counting.via_transformers.structure import (
    decoder_layers,
    experts_in,
    label_layer,
    label_outside,
    number_of_experts,
    signature,
)
from torch_models.errors import UserError

MEASURED_DTYPE = torch.bfloat16
_ATTENTION = "one_fused_kernel"  # the name under which transformers knows `_attention`


class ForeignCounts(ModelCounts, frozen=True, kw_only=True):
    """What was measured, and by whose code."""

    built_as: str  # transformers' class and version


def measure_foreign(model: ForeignModel, sequence_length: int) -> ForeignCounts:
    """Parameters, FLOPs and, where attention runs as one kernel, bytes of the model that transformers builds.

    Raises `UserError` naming the op or the module that cannot be counted.
    """
    with quiet():
        try:
            return _Measurement(model, sequence_length).counts()
        except UserError as error:
            raise UserError(f"{model.source}: model_type {model.model_type} cannot be measured: {error}") from None


class _Call(nn.Module):
    """A part of the model as it was called: tensors in, tensors out, everything else as it was."""

    def __init__(self, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.part = part
        self.leaves, self.tree = tree_flatten((args, kwargs))
        self.places = [place for place, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the part was given; the first is the residual stream."""
        return tuple(self.leaves[place] for place in self.places)

    def forward(self, *tensors: Tensor) -> Any:
        leaves = list(self.leaves)
        for place, tensor in zip(self.places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self.tree)
        out = [leaf for leaf in tree_leaves(self.part(*args, **kwargs)) if isinstance(leaf, Tensor)]
        return out[0] if len(out) == 1 else tuple(out)


class _MemoryCall(nn.Module):
    """The same as `counting.measurements.live_bytes` calls a layer: its input, and what all layers share."""

    def __init__(self, call: _Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x_BSD: Tensor, shared: tuple[Tensor, ...]) -> Tensor:
        out = self.call(x_BSD, *shared)
        stream: Tensor = out if isinstance(out, Tensor) else out[0]
        return stream


class _HandsOn(nn.Module):
    """Stands where a layer stood that another one is like: gives back its input in the form of the other's output."""

    def __init__(self, layer: nn.Module, like: nn.Module) -> None:
        super().__init__()
        self.__dict__["_stood_here"] = layer  # not as a part, so that nothing of it is counted
        self.__dict__["_like"] = like

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_stood_here"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        stream = args[0] if args else kwargs["hidden_states"]
        out = self.__dict__["_like"].last_output
        return (stream, *out[1:]) if isinstance(out, tuple) else stream


class _Measurement:
    def __init__(self, model: ForeignModel, sequence_length: int) -> None:
        self.config = model.config
        self.sequence_length = sequence_length
        self.calls: dict[str, _Call] = {}
        self.module = self._build_and_run()

    def counts(self) -> ForeignCounts:
        import transformers

        layers = tuple(self._layer(index, count) for index, count in self.groups.items())
        label_outside(self.module, self.layers, getattr(self.config, "max_position_embeddings", None))
        traced, dispatched = self._outside_flops()
        for index, layer in enumerate(self.built):
            self.layers[index] = layer
            label_layer(layer, self.core_flops[self.representative[index]])
        in_layers = sum((layer.parameters * layer.count for layer in layers), Counts())
        total = parameter_counts(self.module)
        return ForeignCounts(
            layers=self._named_apart(layers),
            outside_parameters=total - in_layers,
            outside_flops=traced,
            outside_dispatched_flops=dispatched,
            mtp=MtpCounts(
                parameters=Counts(),
                linear_weights=0,
                router_correction_bias=0,
                forward_flops=Counts(),
                dispatched_flops=Counts(),
            ),
            built_as=f"{type(self.module).__name__} of transformers {transformers.__version__}",
        )

    # --- Building and running ------------------------------------------------------------------------------------

    def _build_and_run(self) -> nn.Module:
        """The model, its forward pass run once; attention as one kernel where the family's code allows it.

        Where it does not, its own fused or step-by-step attention runs; and where a pass needs a mask, it gets one.
        """
        _register_attention()
        first: Exception | None = None
        for attention in (_ATTENTION, "sdpa", "eager"):
            for masked in (False, True):
                try:
                    model = self._build(attention)
                    self._run(model, masked)
                    return model
                except UserError:
                    raise
                except Exception as error:  # whatever the family's code says to what it was not made for
                    first = first or error
        raise UserError(f"its forward pass does not run on the meta device: {one_line(first or RuntimeError())}")

    def _build(self, attention: str) -> nn.Module:
        from transformers import AutoModelForCausalLM

        config = type(self.config).from_dict(self.config.to_dict())
        config.use_cache = False
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
                config, dtype=MEASURED_DTYPE, attn_implementation=attention, trust_remote_code=False
            )
        if model._can_set_experts_implementation():  # type: ignore[operator]
            model.set_experts_implementation("grouped_mm")  # type: ignore[operator]
        for module in model.modules():
            if isinstance(module, nn.Conv1d):
                raise UserError(no_count_of(f"{type(module).__name__} and what follows it"))
        return model.eval()

    def _run(self, model: nn.Module, masked: bool) -> None:
        """One forward pass with one layer of each kind, noting what every part is called with."""
        name, layers = decoder_layers(model, self.config.num_hidden_layers)
        self.layers_name, self.layers, self.built = name, layers, list(layers)
        self._group()
        self.calls = {}
        outside = {part: module for part, module in model.named_modules() if not part.startswith(f"{name}.")}
        leaves = {part: m for part, m in outside.items() if next(m.children(), None) is None}
        watched = {f"{name}.{index}": self.built[index] for index in self.groups} | leaves
        with contextlib.ExitStack() as hooks:
            for part, module in watched.items():
                hooks.callback(module.register_forward_pre_hook(self._noting(part), with_kwargs=True).remove)
            for index in self.groups:
                hooks.callback(self.built[index].register_forward_hook(_keep_output).remove)
            for index, layer in enumerate(self.built):
                if index not in self.groups:
                    layers[index] = _HandsOn(layer, self.built[self.representative[index]])
            self._count_whole(model, masked)
        for index in self.groups:
            del self.built[index].last_output

    def _count_whole(self, model: nn.Module, masked: bool) -> None:
        """Run the forward pass under the dispatch counter, which says where products stand."""
        length = self.sequence_length
        inputs: dict[str, Any] = {"input_ids": torch.zeros(1, length, dtype=torch.long, device="meta")}
        if masked:
            inputs["attention_mask"] = torch.ones(1, 1, length, length, dtype=torch.bool, device="meta")
        counter = FlopCounterMode(display=False, custom_mapping=_WITHOUT_OUTER_PRODUCTS)
        with torch.no_grad(), counter:
            model(**inputs, use_cache=False)
        root = type(model).__name__
        totals = {name: sum(ops.values()) for name, ops in counter.get_flop_counts().items()}
        self.whole = totals.pop("Global", 0)
        self.by_part = {name.removeprefix(f"{root}."): total for name, total in totals.items()}

    def _noting(self, part: str) -> Any:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if part in self.calls and any(True for _ in module.parameters()):
                raise UserError(f"{part} is called twice in one forward pass")
            self.calls[part] = _Call(module, args, kwargs)

        return note

    def _group(self) -> None:
        """The first layer of each kind -> how many there are; every layer -> the first of its kind."""
        kinds = getattr(self.config, "layer_types", None) or [None] * len(self.built)
        first: dict[tuple[Any, ...], int] = {}
        self.representative = [
            first.setdefault(signature(layer, kind), index)
            for index, (layer, kind) in enumerate(zip(self.built, kinds, strict=True))
        ]
        self.groups = dict(sorted(Counter(self.representative).items()))
        self.kinds = [None if kind in (None, "full_attention") else str(kind) for kind in kinds]
        self.core_flops: dict[int, dict[str, int]] = {}

    # --- Counting ------------------------------------------------------------------------------------------------

    def _layer(self, index: int, count: int) -> LayerCounts:
        call = self.calls.get(f"{self.layers_name}.{index}")
        if call is None or not call.tensors:
            raise UserError(f"layer {index} is not called in a forward pass")
        layer = self.built[index]
        handles = LayerHandles(layer)
        by_module = _traced(call, handles)
        self.core_flops[index] = {name.removeprefix("part."): counts[CORE] for name, counts in by_module.items()}
        if not self.core_flops[index].get("part"):
            raise UserError(no_count_of(f"its layers ({type(layer).__name__}, without a product of two activations)"))
        label_layer(layer, self.core_flops[index])
        call.component = "other"  # type: ignore[assignment]
        memory = {grad: self._memory(call, grad) for grad in (True, False)}
        experts = experts_in(layer)
        kind = "moe" if experts else "dense"
        return LayerCounts(
            kind=f"{kind}, {self.kinds[index]}" if self.kinds[index] else kind,
            count=count,
            parameters=parameter_counts(layer),
            inactive_parameters=sum(self._inactive(module, handles) for module in experts.values()),
            linear_weights=linear_weights(layer),
            router_correction_bias=0,
            forward_flops=counts_of_modules(call, counted(by_module)),
            dispatched_flops=dispatched_flops(call, call.tensors),
            attention_core=core_of(by_module[""]),
            memory=memory[True],
            memory_no_grad=memory[False],
        )

    def _inactive(self, experts: nn.Module, handles: LayerHandles) -> int:
        """Parameters of the experts that a token does not visit; how many it visits is read off the products' rows."""
        total, rows = number_of_experts(experts), handles.grouped_rows
        if len(rows) != 1 or next(iter(rows)) % self.sequence_length:
            raise UserError(f"{type(experts).__name__} is not computed by grouped products of one number of rows")
        top_k = next(iter(rows)) // self.sequence_length
        return sum(weight.numel() for weight in experts.parameters()) // total * (total - top_k)

    def _memory(self, call: _Call, grad: bool) -> LayerMemory | None:
        """None where attention is the family's own code, whose steps are not what a fused kernel allocates."""
        if not any(getattr(module, "is_one_kernel", False) for module in call.part.modules()):
            return None
        stream, *shared = call.tensors
        layer = _MemoryCall(call)
        call.part.train()
        try:
            with cuda_kernels_on_meta():
                return layer_memory(layer, stream, tuple(shared), grad=grad)
        finally:
            call.part.eval()

    def _outside_flops(self) -> tuple[Counts, Counts]:
        """By trace and by dispatch, of each part outside the layers that multiplies matrices, such as the head."""
        traced, dispatched = Counts(), Counts()
        accounted = sum(self.by_part[f"{self.layers_name}.{index}"] for index in self.groups)
        for name, call in self.calls.items():
            if name.startswith(f"{self.layers_name}.") or not self.by_part.get(name):
                continue
            accounted += self.by_part[name]
            call.component = call.part.component
            by_module = _traced(call, LayerHandles(call.part))
            traced += counts_of_modules(call, counted(by_module))
            dispatched += dispatched_flops(call, call.tensors)
        if accounted != self.whole:
            raise UserError(
                f"{self.whole - accounted:,} FLOPs of its forward pass lie outside its layers and its linear parts"
            )
        return traced, dispatched

    def _named_apart(self, layers: tuple[LayerCounts, ...]) -> tuple[LayerCounts, ...]:
        """The same, with a number after a kind that stands for several distinct layers."""
        seen: Counter[str] = Counter()
        named = []
        for layer in layers:
            seen[layer.kind] += 1
            kind = layer.kind if seen[layer.kind] == 1 else f"{layer.kind} {seen[layer.kind]}"
            named.append(msgspec.structs.replace(layer, kind=kind))
        return tuple(named)


def _traced(call: _Call, handles: LayerHandles) -> dict[str, Counter[str]]:
    try:
        return trace(call, call.tensors, handles.handles(), FOREIGN_ZERO_FLOP_OPS)
    except (AssertionError, RuntimeError) as error:  # ours, or the tracer's own
        raise UserError(one_line(error)) from None


def _keep_output(module: nn.Module, args: Any, out: Any) -> None:
    module.last_output = out


def _register_attention() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_ATTENTION, _attention)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    scaling: float | None = None,
    indices: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention as one kernel over the full square.

    Windows, sinks, biases and soft caps change no product's size; dropout inside the kernel stores nothing. A mask
    is passed on, because what computed it would else be dropped from the trace.
    """
    if indices is not None:  # keys chosen for each query: all are multiplied here, but the choice stays in the trace
        query = query + 0 * indices.sum().to(query.dtype)
    module.is_one_kernel = mask is None and indices is None  # type: ignore[assignment]
    shared_keys = query.shape[1] != key.shape[1]
    if shared_keys and query.shape[-1] != value.shape[-1]:  # the kernel for unequal sizes has no grouped queries
        repeats = query.shape[1] // key.shape[1]
        key, value, shared_keys = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1), False
    causal = mask is None and bool(getattr(module, "is_causal", True))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    more: dict[str, Any] = {} if mask is None else {"attn_mask": mask}
    out = F.scaled_dot_product_attention(
        query, key, value, is_causal=causal, scale=scale, enable_gqa=bool(shared_keys), **more
    )
    return out.transpose(1, 2).contiguous(), None


def _product(left: list[int], right: list[int], *_: Any, **__: Any) -> int:
    """2 FLOPs per multiply-add; a product over one term sums nothing, and is elementwise work (rotary tables)."""
    if left[-1] == 1:
        return 0
    leading = left[0] if len(left) == 3 else 1
    return 2 * leading * left[-2] * left[-1] * right[-1]


# Where products stand outside the layers: the rotary tables are made by a product over one term.
_WITHOUT_OUTER_PRODUCTS = {
    torch.ops.aten._grouped_mm: dispatched_grouped_mm,
    torch.ops.aten.mm: _product,
    torch.ops.aten.bmm: _product,
}
