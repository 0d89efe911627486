"""What one model costs: measured, reconciled with the formulas, and put into words that need no knowledge of torch.

    from counting.analysis import analyze
    print(analyze("deepseek_v3_config.json", sequence_length=4096).forward_flops)

Torch is imported when a model is measured, not with this module.
"""

import os
from typing import TYPE_CHECKING, Literal

import msgspec

from counting.counts import BATCH_SIZE, AttentionCore, LayerCounts, LayerMemory, ModelCounts
from counting.formulas.model import derive
from counting.reconcile import Agreement, compare_counters, reconcile
from counting.step_memory import StepMemory, analyze_step_memory
from counting.step_profile import StepOptions
from counting.training_step import TrainingOptions, TrainingStep, analyze_step
from torch_models.errors import ConfigError, UserError, show_value
from torch_models.fields.config import ForeignConfig, read_model
from torch_models.spec import MAX_SEQUENCE_LENGTH, Kernels, ModelSpec, check_kernels

if TYPE_CHECKING:
    from counting.via_transformers.config import ForeignModel

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
    "Measured in bfloat16, which has float16's bytes: grouped products have no float16 meta kernel.",
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


class Conventions(msgspec.Struct, frozen=True, kw_only=True):
    """What the numbers rest on."""

    sequence_length: int
    sequence_length_source: str
    batch_size: int
    dtype: str
    kernels: Kernels | None  # None where no memory was measured, which is all that they decide
    notes: tuple[str, ...] = NOTES


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
    conventions: Conventions
    parameters: ParameterTotals
    layers: tuple[LayerAnalysis, ...]
    forward_flops: int
    forward_flops_causal: int
    forward_flops_full_attention: int
    forward_flops_by_component: dict[str, int]
    mtp_forward_flops: int
    model_flops: int  # of training the main model on one sequence, however it is run: 3 x forward_flops
    defaulted_fields: tuple[str, ...]
    agreement: Agreement
    training: TrainingStep | None = None  # where a step was measured; its model FLOPs may include mtp
    memory: StepMemory | None = None  # of that step

    @property
    def main_layer(self) -> LayerAnalysis:
        """The layer that the short report speaks of: the mixture of experts where there is one."""
        return next((layer for layer in self.layers if layer.kind.startswith("moe")), self.layers[0])


def analyze(
    config: str | os.PathLike[str] | ModelSpec | ForeignConfig,
    *,
    sequence_length: int | None = None,
    kernels: Kernels = "fused",
    training: TrainingOptions | None = None,
) -> Analysis:
    """Measure the model of `config` (a path, a name in configs/, a spec, or fields of a family that is not native).

    A native family is reconciled with the formulas; any other is built by transformers and has none. With `training`
    a step is measured too, forward and backward, which takes about as long again; only native families have one. Raises
    `UserError` for what the user can mend, `DisagreementError` where module and formula, or two counters, differ.
    """
    check_kernels(kernels)
    model = config if isinstance(config, ModelSpec | ForeignConfig) else read_model(config)
    if not isinstance(model, ForeignConfig):
        return _analyze_native(model, sequence_length, kernels, training)
    if training is not None:
        raise UserError(
            f"{model.source}: {model.model_type or 'its family'} goes through transformers, which measures no training "
            "step: leave out training"
        )
    return _analyze_foreign(model, sequence_length, kernels)


def _analyze_native(
    spec: ModelSpec, sequence_length: int | None, kernels: Kernels, training: TrainingOptions | None
) -> Analysis:
    conventions = _conventions(spec, sequence_length, kernels)

    from counting.measurements.probe import measure

    run = (spec, conventions.sequence_length, kernels)
    counts = measure(*run)
    agreement = reconcile(spec.name, counts, derive(*run))
    analysis = _analysis(spec, "measured = formula", conventions, counts, agreement)
    if training is None:
        return analysis
    training = training.of_sequence(conventions.sequence_length, spec.name)
    step, checks = analyze_step(spec, counts, conventions.sequence_length, kernels, training)
    options = StepOptions(
        sequence_length=conventions.sequence_length,
        kernels=kernels,
        recompute=training.recompute,
        precision=training.precision,
        optimizer=training.optimizer,
        mtp=step.mtp,
        loss_chunk=training.loss_chunk,
    )
    memory, memory_checks = analyze_step_memory(spec, options)
    agreement = Agreement(ok=True, checks=(*agreement.checks, *checks, *memory_checks))
    return msgspec.structs.replace(analysis, agreement=agreement, training=step, memory=memory)


def _analyze_foreign(foreign: ForeignConfig, sequence_length: int | None, kernels: Kernels) -> Analysis:
    """Through transformers, which is imported here and nowhere else."""
    if kernels != "fused":
        raise UserError(
            f"kernels = {show_value(kernels)}: {foreign.model_type or 'its family'} goes through transformers, and is "
            "measured with fused attention only"
        )
    from counting.via_transformers.config import read_foreign

    model = read_foreign(foreign)
    conventions = _conventions(model, sequence_length, kernels)

    from counting.via_transformers.measure import measure_foreign

    counts = measure_foreign(model, conventions.sequence_length)
    if not counts.layers:
        raise UserError(f"{model.source}: the model has no decoder layers")
    conventions = msgspec.structs.replace(
        conventions,
        dtype="bfloat16",
        kernels=kernels if all(layer.memory for layer in counts.layers) else None,
        notes=(*FOREIGN_NOTES, *model.notes, f"Built as {counts.built_as}."),
    )
    agreement = compare_counters(model.name, counts)
    return _analysis(model, "measured, no formula", conventions, counts, agreement)


def _analysis(
    model: "ModelSpec | ForeignModel", proof: Proof, conventions: Conventions, counts: ModelCounts, agreement: Agreement
) -> Analysis:
    core = counts.attention_core
    return Analysis(
        name=model.name,
        model_type=model.model_type,
        proof=proof,
        conventions=conventions,
        parameters=_parameter_totals(counts),
        layers=tuple(_layer_analysis(layer) for layer in counts.layers),
        forward_flops=counts.forward_flops.total,
        forward_flops_causal=counts.forward_flops.total - core.as_run + core.causal,
        forward_flops_full_attention=counts.forward_flops.total - core.as_run + core.full_square,
        forward_flops_by_component=counts.forward_flops.by_component(),
        mtp_forward_flops=counts.mtp.forward_flops.total,
        model_flops=3 * counts.forward_flops.total,
        defaulted_fields=model.defaulted_fields,
        agreement=agreement,
    )


def _conventions(spec: "ModelSpec | ForeignModel", sequence_length: int | None, kernels: Kernels) -> Conventions:
    length, source = spec.sequence_length, spec.sequence_length_source
    if sequence_length is not None:
        length, source = sequence_length, "seq_len"
    if source is not None and length is not None:
        if isinstance(length, bool) or not isinstance(length, int) or not 1 <= length <= MAX_SEQUENCE_LENGTH:
            raise UserError(
                f"{source} = {show_value(length)}: must be a whole number of tokens from 1 to {MAX_SEQUENCE_LENGTH}"
            )
    else:
        raise ConfigError(
            "max_position_embeddings", None, "is missing, and so is max_sequence_length; give seq_len", spec.name
        )
    return Conventions(
        sequence_length=length,
        sequence_length_source=source,
        batch_size=BATCH_SIZE,
        dtype="float16",
        kernels=kernels,
    )


def _parameter_totals(counts: ModelCounts) -> ParameterTotals:
    parameters, active = counts.parameters, counts.active_parameters
    return ParameterTotals(
        total=parameters.total,
        active=active,
        active_without_embedding=active - parameters.word_embedding,
        active_without_vocabulary=active - parameters.word_embedding - parameters.lm_head,
        mtp=counts.mtp.parameters.total,
        router_correction_bias=counts.router_correction_bias,
        mtp_router_correction_bias=counts.mtp.router_correction_bias,
        by_component=parameters.by_component(),
        linear_weights=counts.linear_weights,
        mtp_linear_weights=counts.mtp.linear_weights,
    )


def _layer_analysis(layer: LayerCounts) -> LayerAnalysis:
    core = layer.attention_core
    return LayerAnalysis(
        kind=layer.kind,
        count=layer.count,
        parameters=layer.parameters.total,
        parameters_by_component=layer.parameters.by_component(),
        forward_flops=layer.forward_flops.total,
        forward_flops_causal=layer.forward_flops.total - core.as_run + core.causal,
        forward_flops_full_attention=layer.forward_flops.total - core.as_run + core.full_square,
        forward_flops_by_component=layer.forward_flops.by_component(),
        attention_core_flops=core,
        peak_memory_bytes=None if layer.memory is None else layer.memory.peak,
        peak_memory_parts=layer.memory,
        peak_memory_no_grad_bytes=None if layer.memory_no_grad is None else layer.memory_no_grad.peak,
        peak_memory_no_grad_parts=layer.memory_no_grad,
    )
