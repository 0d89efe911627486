"""What one model costs: measured, reconciled with the formulas, and put into words that need no knowledge of torch.

    from counting import Setup, analyze
    print(analyze("deepseek_v3", Setup(sequence_length=4096)).forward_flops)

Torch is imported when a model is measured, not with this module.
"""

import os
from collections.abc import Mapping
from math import ceil
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from counting.counts import AttentionCore, Counts, LayerCounts, LayerMemory, ModelCounts, WholeModel, model_flops
from counting.reconcile import Agreement, reconcile
from counting.setup import MOST_CHUNKS, Setup, resolve
from counting.step.fits import Fit
from counting.step.flops import TrainingStep, training_step
from counting.step.memory import Alternative, StepMemory, step_memory, with_states
from torch_models.errors import ArgumentError
from torch_models.fields.config import ForeignConfig, read_model
from torch_models.spec import Kernels, ModelSpec, Recompute

if TYPE_CHECKING:
    from counting.via_transformers.config import ForeignModel

ALTERNATIVE_CHUNK = 1024  # tokens of the loss at a time, where the step is also looked at in chunks

# Printed beside the numbers they govern.
NOTES = (
    "FLOPs: one multiply-add is 2 FLOPs; matrix multiplications only; attention counts the full S x S square, and "
    "the causal figure half of it. Where a layer has a window of W, fused kernels visit a band of S x W, the causal "
    "figure is S W - W^2 / 2, and the full square stands beside them.",
    "Parameters: what the optimiser updates, by numel. Router correction biases are buffers, and multi-token "
    "prediction (mtp) stands beside the main model: both are reported, neither is added.",
    "Norms inside attention count as norm. The rotary position embedding has no parameters.",
    "Peak memory: one layer's forward pass in training mode with 16-bit numbers, activations checkpointed at layer "
    "boundaries: weights, input, what is saved for backward (the rotary tables, which all layers share, included), and "
    "transients at the worst moment. No gradients, no optimiser state, no workspaces within a kernel. GB = 10^9 bytes.",
    "Fused kernels: flash attention, or torch's memory-efficient kernel where queries and values differ in size, and "
    "fused RMSNorm, as torch runs them on an A100. What a kernel pads (head sizes that are no multiple of 8) is not "
    "counted, nor is a head above 256 channels refused, as flash attention would. Windows, soft caps and sinks are in "
    "a kernel of this project's, of flash attention's memory, since torch has none.",
    "Parameters, forward FLOPs and one layer's memory are measured in bfloat16, which has float16's bytes: grouped "
    "products have no float16 meta kernel.",
)


FOREIGN_NOTES = (
    "Measured, no formula: transformers built the model, and its code was measured. FLOPs were counted twice, by trace "
    "and by dispatch, and are equal; parameters and bytes were counted once, and nothing proves them.",
    NOTES[0],
    "Attention counts the full square whatever a window or a choice of keys leaves of it; routed experts count those "
    "that a token visits.",
    "Parameters: by numel, tied ones once. The row of each is told by type, shape and what its module computed; what "
    "cannot be told is in the row other. Buffers are not counted.",
    "Peak memory: one layer's forward pass in training mode in bfloat16, as transformers' modules compute it, with "
    "attention as one fused kernel. It is left out where attention is the family's own code.",
)


Proof = Literal["measured = formula", "measured, no formula"]


class ParameterTotals(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of the main model; `mtp` and the correction biases are not in `total`."""

    total: int
    active: int  # those one token uses
    active_without_embedding: int  # input embedding left out; of a tied model the head is left out with it
    active_without_vocabulary: int  # input embedding and head left out
    mtp: int
    router_correction_bias: int
    mtp_router_correction_bias: int
    by_component: dict[str, int]
    linear_weights: int  # in the matrices of attention and feed-forward: what fp8 recipes quantise
    mtp_linear_weights: int


class LayerAnalysis(msgspec.Struct, frozen=True, kw_only=True):
    """One distinct layer; FLOPs and bytes are of one forward pass over one sequence."""

    kind: str
    count: int
    parameters: int
    parameters_by_component: dict[str, int]
    forward_flops: int
    forward_flops_causal: int
    forward_flops_full_attention: int  # as if every layer saw all the way back; differs only where windows are
    forward_flops_by_component: dict[str, int]
    attention_core_flops: AttentionCore
    peak_memory_bytes: int | None  # None, like the three below, where it could not be measured
    peak_memory_parts: LayerMemory | None
    peak_memory_no_grad_bytes: int | None
    peak_memory_no_grad_parts: LayerMemory | None

    @property
    def forward_tflops(self) -> float:
        """Forward FLOPs in units of 10^12."""
        return self.forward_flops / 10**12

    @property
    def peak_memory_gb(self) -> float:
        """Peak memory in units of 10^9 bytes, of a layer where it was measured."""
        assert self.peak_memory_bytes is not None
        return self.peak_memory_bytes / 10**9


class Analysis(msgspec.Struct, frozen=True, kw_only=True):
    """Everything measured of one model, with what proves it; lossless to JSON and back."""

    name: str
    model_type: str
    proof: Proof
    setup: Setup  # nothing in it is left open
    parameters: ParameterTotals
    layers: tuple[LayerAnalysis, ...]
    forward_flops: int
    forward_flops_causal: int
    forward_flops_full_attention: int
    forward_flops_by_component: dict[str, int]
    mtp_forward_flops: int
    model_flops: int  # of training the main model on one micro-batch, however it is run
    defaulted_fields: tuple[str, ...]
    agreement: Agreement
    notes: tuple[str, ...]
    training: TrainingStep | None = None  # where a step was measured; its model FLOPs may include mtp
    memory: StepMemory | None = None  # of that step
    fits: tuple[Fit, ...] | None = None  # on the GPUs that were asked about
    # Of a cluster, over which nothing is spread yet.
    layout: None = None
    rank_classes: None = None
    step_time: None = None

    @property
    def main_layer(self) -> LayerAnalysis:
        """The layer that the short report speaks of: the mixture of experts where there is one."""
        return next((layer for layer in self.layers if layer.kind.startswith("moe")), self.layers[0])

    @property
    def sequence_length(self) -> int:
        """Tokens of a sequence."""
        assert self.setup.sequence_length is not None
        return self.setup.sequence_length


DEFAULT_SETUP = Setup()

AnyConfig = str | os.PathLike[str] | Mapping[str, Any] | ModelSpec | ForeignConfig


def analyze(
    config: AnyConfig, setup: Setup = DEFAULT_SETUP, *, layout: None = None, cluster: None = None, step: bool = True
) -> Analysis:
    """Measure the model of `config` under `setup`, and reconcile every witness of each number.

    `config` is a path, a name in configs/, a mapping of a config's fields, a spec, or the fields of a family that has
    no modules here: that one is built by transformers, has no formulas and no training step. With `step` a native
    family's training step is measured too, forward and backward, which takes about as long again. `layout` and
    `cluster` are places for what a step is spread over: nothing is spread yet, and only None is taken. Raises
    `UserError` for what the user can mend, `DisagreementError` where two witnesses differ.
    """
    for field, value in (("layout", layout), ("cluster", cluster)):
        if value is not None:
            raise ArgumentError(field, value, "nothing is spread over several devices yet: leave it out")
    if not isinstance(setup, Setup):
        raise ArgumentError("setup", setup, "must be a Setup")
    model = config if isinstance(config, ModelSpec | ForeignConfig) else read_model(config)
    if isinstance(model, ForeignConfig):
        return _analyze_via_transformers(model, setup)
    return _analyze_native(model, resolve(setup, model), step)


def count_by_formula(spec: ModelSpec) -> Counts:
    """Parameters by formula alone, in microseconds: for a search over many models, of which one is then measured."""
    from counting.formulas.parameters import parameters

    return parameters(spec)


def _analyze_native(spec: ModelSpec, setup: Setup, step: bool) -> Analysis:
    from counting.formulas.memory import simulate
    from counting.formulas.model import by_formula
    from counting.measurements.model import measure

    witnesses = measure(spec, setup, step=step)
    witnesses["formula"] = by_formula(spec, setup, step=step)
    witnesses["simulation"] = simulate(spec, setup, step=step)
    measured_dtype = setup.precision_recipe.activation_dtype if step else "bfloat16"
    setup = msgspec.structs.replace(setup, measured_dtype=measured_dtype)
    analysis, counts = _analysis(spec, "measured = formula", setup, NOTES, witnesses)
    if not step:
        return analysis
    core, mtp_core = counts.whole_model().attention_core_flops, counts.mtp.attention_core_flops
    assert counts.training_flops and counts.step_profile and core and mtp_core
    memory = step_memory(spec, setup, counts.step_profile)
    return msgspec.structs.replace(
        analysis,
        training=training_step(counts.training_flops, core + mtp_core if setup.mtp else core, setup),
        memory=msgspec.structs.replace(memory, alternatives=_alternatives(spec, setup, counts)),
    )


def _alternatives(spec: ModelSpec, setup: Setup, counts: ModelCounts) -> tuple[Alternative, ...]:
    """The step with other recomputation, or with its loss in smaller chunks; cheapest first.

    Where query heads share key and value heads there are, after those with the step's own fused kernels, the same and
    the step itself with eager ones: not every GPU has a fused kernel for that. The states are those of `counts`, on
    which the witnesses agree. Each alternative takes a few milliseconds.
    """
    all_kernels: list[Kernels] = [setup.kernels]
    if setup.kernels == "fused" and any(layer.shares_key_value_heads for layer, _ in spec.layer_groups()):
        all_kernels.append("eager")
    smaller = max(ALTERNATIVE_CHUNK, ceil(setup.tokens / MOST_CHUNKS))
    chunks = [setup.loss_chunk, *([smaller] if (setup.loss_chunk or setup.tokens) > smaller else [])]
    found: list[Alternative] = []
    for kernels in all_kernels:
        ways = [(recompute, chunk) for recompute in _recomputes(kernels) for chunk in chunks]
        own = (setup.recompute, setup.loss_chunk) if kernels == setup.kernels else None
        others = [_alternative(spec, setup, counts, kernels, *way) for way in ways if way != own]
        found += sorted(others, key=lambda other: other.recomputed_flops)
    return tuple(found)


def _recomputes(kernels: Kernels) -> tuple[Recompute, ...]:
    """What is worth recomputing.

    Of fused kernels selective recompute saves the logarithm of each row's sum, 4 bytes a head and token: about a
    thousandth, at most, of what a step of the bundled models holds beside its states.
    """
    return ("none", "full") if kernels == "fused" else get_args(Recompute)


def _alternative(
    spec: ModelSpec, setup: Setup, counts: ModelCounts, kernels: Kernels, recompute: Recompute, loss_chunk: int | None
) -> Alternative:
    from counting.formulas.memory import simulate
    from counting.formulas.model import by_formula

    other = msgspec.structs.replace(setup, kernels=kernels, recompute=recompute, loss_chunk=loss_chunk)
    simulated, flops = simulate(spec, other, step=True).step_profile, by_formula(spec, other, step=True).training_flops
    assert simulated and flops and counts.step_profile
    return Alternative(
        kernels=kernels,
        recompute=recompute,
        loss_chunk=loss_chunk,
        peak_bytes=step_memory(spec, other, with_states(simulated, counts.step_profile)).peak_bytes,
        recomputed_flops=flops.recomputed.total,
    )


def _analyze_via_transformers(foreign: ForeignConfig, setup: Setup) -> Analysis:
    """Of a family without modules here: transformers builds it, and there is no formula and no step."""
    family = foreign.model_type or "its family"
    if setup.kernels != "fused":
        rule = f"{family} goes through transformers, and is measured with fused attention only"
        raise ArgumentError("kernels", setup.kernels, rule)
    for field, plain in (("recompute", "none"), ("loss_chunk", None)):
        if getattr(setup, field) != plain:
            rule = f"{family} goes through transformers, and no training step of it is measured: leave it out"
            raise ArgumentError(field, getattr(setup, field), rule)
    from counting.via_transformers.config import read_foreign

    model = read_foreign(foreign)
    setup = msgspec.structs.replace(resolve(setup, model), measured_dtype="bfloat16")

    from counting.via_transformers.measure import measure_via_transformers

    measured = measure_via_transformers(model, setup)
    notes = (*FOREIGN_NOTES, *model.notes, f"Built as {measured.built_as}.")
    return _analysis(model, "measured, no formula", setup, notes, measured.witnesses)[0]


def _analysis(
    model: "ModelSpec | ForeignModel",
    proof: Proof,
    setup: Setup,
    notes: tuple[str, ...],
    witnesses: Mapping[str, ModelCounts],
) -> tuple[Analysis, ModelCounts]:
    """The result without a step, and what all witnesses together say."""
    counts, agreement = reconcile(model.name, witnesses)
    whole = counts.whole_model()
    flops, core, mtp_flops = whole.forward_flops, whole.attention_core_flops, counts.mtp.forward_flops
    assert flops is not None and core is not None and mtp_flops is not None
    analysis = Analysis(
        name=model.name,
        model_type=model.model_type,
        proof=proof,
        setup=setup,
        parameters=_parameter_totals(counts, whole),
        layers=tuple(_layer_analysis(layer) for layer in counts.layers),
        forward_flops=flops.total,
        forward_flops_causal=core.causal_flops(flops.total),
        forward_flops_full_attention=core.full_square_flops(flops.total),
        forward_flops_by_component=flops.by_component(),
        mtp_forward_flops=mtp_flops.total,
        model_flops=model_flops(flops.total),
        defaulted_fields=model.defaulted_fields,
        agreement=agreement,
        notes=notes,
    )
    return analysis, counts


def _parameter_totals(counts: ModelCounts, whole: WholeModel) -> ParameterTotals:
    parameters, active, mtp = whole.parameters, whole.active_parameters, counts.mtp
    assert parameters is not None and active is not None and mtp.parameters is not None
    assert whole.router_correction_bias is not None and whole.linear_weights is not None
    assert mtp.router_correction_bias is not None and mtp.linear_weights is not None
    return ParameterTotals(
        total=parameters.total,
        active=active,
        active_without_embedding=active - parameters.word_embedding,
        active_without_vocabulary=active - parameters.word_embedding - parameters.lm_head,
        mtp=mtp.parameters.total,
        router_correction_bias=whole.router_correction_bias,
        mtp_router_correction_bias=mtp.router_correction_bias,
        by_component=parameters.by_component(),
        linear_weights=whole.linear_weights,
        mtp_linear_weights=mtp.linear_weights,
    )


def _layer_analysis(layer: LayerCounts) -> LayerAnalysis:
    parameters, flops, core = layer.parameters, layer.forward_flops, layer.attention_core_flops
    memory, no_grad = layer.peak_memory_bytes, layer.peak_memory_no_grad_bytes
    assert parameters is not None and flops is not None and core is not None
    return LayerAnalysis(
        kind=layer.kind,
        count=layer.count,
        parameters=parameters.total,
        parameters_by_component=parameters.by_component(),
        forward_flops=flops.total,
        forward_flops_causal=core.causal_flops(flops.total),
        forward_flops_full_attention=core.full_square_flops(flops.total),
        forward_flops_by_component=flops.by_component(),
        attention_core_flops=core,
        peak_memory_bytes=None if memory is None else memory.total,
        peak_memory_parts=memory,
        peak_memory_no_grad_bytes=None if no_grad is None else no_grad.total,
        peak_memory_no_grad_parts=no_grad,
    )
