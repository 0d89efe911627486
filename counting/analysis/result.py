"""The result of an analysis, and how it is made of what the witnesses say. Without torch objects."""

from collections.abc import Collection, Mapping, Sequence
from itertools import repeat
from typing import TYPE_CHECKING, Literal

from counting.counts import (
    AttentionCore,
    LayerCounts,
    LayerMemory,
    ModelCounts,
    WholeModel,
    model_flops,
    with_checkpoint,
    with_scans,
)
from counting.ranks.result import RankAnalysis, Undivided
from counting.reconcile import Agreement, reconcile
from counting.records.tidy import Tidy
from counting.scans import Scan, products_by_formula
from counting.setup import Setup
from counting.step.fit import Fit
from counting.step.flops import TrainingStep
from counting.step.memory import StepMemory
from counting.step.time import NotTimed, StepTime
from counting.step.timeline import StepTimeline
from torch_models.layout import Layout
from torch_models.spec import ModelSpec

if TYPE_CHECKING:
    from counting.measurements.checkpoint import StoredTotals
    from counting.via_transformers.reading.config import ForeignModel

Proof = Literal["measured = formula", "measured, no formula", "measured; scans by formula"]


class ParameterTotals(Tidy, frozen=True, kw_only=True):
    """Parameters of the main model; `mtp` and the correction biases are not in `total`."""

    total: int
    active: int  # the parameters that one token uses
    active_without_embedding: int  # without the input embedding; in a tied model also without the head
    active_without_vocabulary: int  # without input embedding and head
    mtp: int
    router_correction_bias: int
    mtp_router_correction_bias: int
    by_component: dict[str, int]
    linear_weights: int  # in the matrices of attention and feed-forward, which fp8 recipes quantise
    mtp_linear_weights: int
    moment_bytes: int  # of the setup's optimiser, for the main model
    mtp_moment_bytes: int
    frozen: int = 0  # of total, those that no gradient reaches: of indexers
    mtp_frozen: int = 0  # the same of mtp


class LayerAnalysis(Tidy, frozen=True, kw_only=True):
    """One distinct layer. FLOPs and bytes are those of one forward pass over one micro-batch."""

    kind: str
    count: int  # layers of the model that are equal to this one
    parameters: int  # of one such layer
    parameters_by_component: dict[str, int]
    forward_flops: int
    forward_flops_causal: int
    forward_flops_full_attention: int  # as if no layer had a window
    forward_flops_by_component: dict[str, int]
    attention_core_flops: AttentionCore
    peak_memory_bytes: int | None  # this and the three fields below are None where memory was not measured
    peak_memory_parts: LayerMemory | None
    peak_memory_no_grad_bytes: int | None
    peak_memory_no_grad_parts: LayerMemory | None
    scans: tuple[str, ...] = ()  # the published algorithms that carry a state along the sequence, and their chunks
    scans_by_formula: tuple[str, ...] = ()  # those of them whose products are in scan_flops
    scan_flops: int = 0  # of their products, by formula alone; part of forward_flops
    elementwise_operations: int = 0  # of the scans and short convolutions, in no FLOPs

    @property
    def forward_tflops(self) -> float:
        """Forward FLOPs in units of 10^12."""
        return self.forward_flops / 10**12

    @property
    def peak_memory_gb(self) -> float:
        """Peak memory in units of 10^9 bytes; only for a layer whose memory was measured."""
        assert self.peak_memory_bytes is not None
        return self.peak_memory_bytes / 10**9


class Analysis(Tidy, frozen=True, kw_only=True):
    """All measured numbers of one model, with the checks of each. Converts to JSON and back without loss."""

    name: str
    model_type: str
    proof: Proof
    setup: Setup  # resolved: every open field has a value
    parameters: ParameterTotals
    layers: tuple[LayerAnalysis, ...]
    forward_flops: int  # this and the next four: of one micro-batch
    forward_flops_causal: int
    forward_flops_full_attention: int
    forward_flops_by_component: dict[str, int]
    mtp_forward_flops: int
    model_flops: int  # of training the main model on all micro-batches of a step, independent of recomputation
    defaulted_fields: tuple[str, ...]
    passed_over_fields: tuple[str, ...]  # fields of the config that have no part in the model, with the reasons
    ignored_fields: tuple[str, ...]  # fields that are not understood and that the caller named as without influence
    agreement: Agreement
    notes: tuple[str, ...]
    training: TrainingStep | None = None  # None: no step was measured; its model FLOPs include mtp if that is trained
    memory: StepMemory | None = None  # of that step
    fits: tuple[Fit, ...] | None = None  # one for each GPU that the caller named
    layout: Layout | None = None  # resolved; this and the next two: only of a step that is spread over ranks
    rank_classes: tuple[RankAnalysis, ...] | None = None  # in the order of their lowest rank
    undivided: Undivided | None = None  # how the sums over the ranks follow from the undivided model
    step_time: tuple[StepTime, ...] | None = None  # one for each cluster that the caller gave; by formula empty
    timeline: StepTimeline | None = None  # of the step on one device, where it was asked for
    not_timed: tuple[NotTimed, ...] = ()  # GPUs that the command was given and whose time is not worked out
    forward_only_flops: int = 0  # of forward_flops, those that backward does not pass: of indexers
    mtp_forward_only_flops: int = 0  # the same of mtp_forward_flops
    scan_flops: int = 0  # of forward_flops, the products of scans that carry a state, by formula alone
    elementwise_operations: int = 0  # of these scans and of short convolutions; in no FLOPs

    @property
    def main_layer(self) -> LayerAnalysis:
        """The layer that the short report shows: the first mixture-of-experts layer, else the first layer."""
        return next((layer for layer in self.layers if layer.kind.startswith("moe")), self.layers[0])

    @property
    def sequence_length(self) -> int:
        """Tokens per sequence."""
        assert self.setup.sequence_length is not None
        return self.setup.sequence_length


def analysis_of_witnesses(
    model: "ModelSpec | ForeignModel",
    proof: Proof,
    setup: Setup,
    notes: tuple[str, ...],
    witnesses: Mapping[str, ModelCounts],
    stored: "StoredTotals | None",
    scans: Sequence[Sequence[Scan]] = (),
) -> tuple[Analysis, ModelCounts]:
    """The result without a step, and the merged counts of all witnesses; `stored` is what a checkpoint says.

    `scans` has those of each distinct layer, if the model has any.
    """
    if stored is not None:
        notes = (*notes, stored.note)
        witnesses = witnesses if stored.totals is None else with_checkpoint(witnesses, stored.totals)
    counts, agreement = reconcile(model.name, witnesses)
    counts = with_scans(counts)
    whole = counts.whole_model()
    flops, core, mtp_flops = whole.forward_flops, whole.attention_core_flops, counts.mtp.forward_flops
    assert flops is not None and core is not None and mtp_flops is not None
    analysis = Analysis(
        name=model.name,
        model_type=model.model_type,
        proof=proof,
        setup=setup,
        parameters=_parameter_totals(counts, whole),
        layers=tuple(
            _layer_analysis(layer, of_layer)
            for layer, of_layer in zip(counts.layers, scans or repeat(()), strict=False)
        ),
        forward_flops=flops.total,
        forward_flops_causal=core.causal_flops(flops.total),
        forward_flops_full_attention=core.full_square_flops(flops.total),
        forward_flops_by_component=flops.by_component(),
        mtp_forward_flops=mtp_flops.total,
        model_flops=model_flops(flops.total, flops.forward_only) * (setup.micro_batches or 1),
        defaulted_fields=model.defaulted_fields,
        passed_over_fields=model.passed_over_fields,
        ignored_fields=model.ignored_fields,
        agreement=agreement,
        notes=notes,
        forward_only_flops=flops.forward_only,
        mtp_forward_only_flops=mtp_flops.forward_only,
        scan_flops=sum((layer.scan_flops or 0) * layer.count for layer in counts.layers),
        elementwise_operations=sum((layer.elementwise_operations or 0) * layer.count for layer in counts.layers),
    )
    return analysis, counts


def _parameter_totals(counts: ModelCounts, whole: WholeModel) -> ParameterTotals:
    parameters, active, mtp = whole.parameters, whole.active_parameters, counts.mtp
    assert parameters is not None and active is not None and mtp.parameters is not None
    assert whole.router_correction_bias is not None and whole.linear_weights is not None
    assert mtp.router_correction_bias is not None and mtp.linear_weights is not None
    assert whole.moment_bytes is not None and mtp.moment_bytes is not None
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
        moment_bytes=whole.moment_bytes,
        mtp_moment_bytes=mtp.moment_bytes,
        frozen=whole.frozen_parameters or 0,
        mtp_frozen=mtp.frozen_parameters or 0,
    )


def _layer_analysis(layer: LayerCounts, scans: Collection[Scan]) -> LayerAnalysis:
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
        scans=tuple(dict.fromkeys(scan.algorithm for scan in scans)),
        scans_by_formula=tuple(dict.fromkeys(scan.algorithm for scan in scans if products_by_formula(scan))),
        scan_flops=layer.scan_flops or 0,
        elementwise_operations=layer.elementwise_operations or 0,
    )
