"""The cost of one model: measured, reconciled with the formulas, and returned as data without torch objects.

    from counting import Setup, analyze
    print(analyze("deepseek_v3", Setup(sequence_length=4096)).forward_flops)

Torch is imported when a model is measured, not when this module is imported.
"""

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from counting.alternatives import step_alternatives
from counting.cost.cluster import Cluster
from counting.counts import (
    AttentionCore,
    Counts,
    LayerCounts,
    LayerMemory,
    ModelCounts,
    WholeModel,
    model_flops,
    with_checkpoint,
)
from counting.ranks.result import RankAnalysis, Undivided
from counting.reconcile import Agreement, Check, DisagreementError, reconcile
from counting.records.tidy import Tidy
from counting.setup import Setup, resolve
from counting.step.fit import Fit
from counting.step.flops import TrainingStep, training_step
from counting.step.memory import StepMemory, step_memory
from counting.step.notes import NOTES
from counting.step.time import NO_TIME_BY_FORMULA, NotTimed, StepTime
from counting.step.timeline import StepTimeline
from counting.timing import check_clusters, checked_clusters, step_times
from torch_models.errors import ArgumentError
from torch_models.fields.config import ForeignConfig, read_model
from torch_models.layout import Layout
from torch_models.recomputed_layers import with_recompute
from torch_models.spec import ModelSpec

if TYPE_CHECKING:
    from counting.measurements.checkpoint import StoredTotals
    from counting.via_transformers.reading.config import ForeignModel

Proof = Literal["measured = formula", "measured, no formula"]


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

    @property
    def main_layer(self) -> LayerAnalysis:
        """The layer that the short report shows: the first mixture-of-experts layer, else the first layer."""
        return next((layer for layer in self.layers if layer.kind.startswith("moe")), self.layers[0])

    @property
    def sequence_length(self) -> int:
        """Tokens per sequence."""
        assert self.setup.sequence_length is not None
        return self.setup.sequence_length


DEFAULT_SETUP = Setup()

AnyConfig = str | os.PathLike[str] | Mapping[str, Any] | ModelSpec | ForeignConfig


def analyze(
    config: AnyConfig,
    setup: Setup = DEFAULT_SETUP,
    *,
    text_only: bool = False,
    ignore_fields: Sequence[str] = (),
    layout: Layout | None = None,
    cluster: Cluster | Sequence[Cluster] | None = None,
    step: bool = True,
    reserved: bool = False,
    timeline: bool = False,
) -> Analysis:
    """Measure the model of `config` under `setup`, and compare the measurements with each other and with the formulas.

    `config` is a path, a folder with a config.json, a name in configs/, a mapping of config fields, a `ModelSpec`, or a
    `ForeignConfig`. Where the folder has safetensors, their headers are one more witness of the parameters. A
    `ForeignConfig` is of a family without modules in this project: transformers builds the model, and the result has
    no formulas. With `text_only`, only the text decoder of a config of several models, such as a
    vision-language model, is analysed. `ignore_fields` are names of config fields that are not understood and do not
    matter; the result repeats them. With `step`, the training step (forward and backward) is
    measured too, which takes about as long again. With `layout`, the step is spread over ranks, and each class of equal
    ranks is measured. With `reserved`, what the caching allocator reserves is estimated too, of the step or, with a
    layout, of the ranks that need most: the whole model is run twice, not one layer of each kind. With `cluster`, one
    or several, how long the step takes there. With `timeline`, the memory of the step on one device over time, which is
    measured once more. Raises `UserError` for wrong input, and `DisagreementError` if two
    measurements or formulas of one number differ.
    """
    if not isinstance(layout, Layout | None):
        raise ArgumentError("layout", layout, "must be a Layout")
    for field, value in (("layout", layout), ("cluster", cluster), ("timeline", timeline or None)):
        if value is not None and not step:
            raise ArgumentError("step", step, f"must be true with a {field}")
    if reserved and not step:
        raise ArgumentError("reserved", reserved, "is of a training step: give step too, or leave it out")
    if timeline and layout is not None:
        raise ArgumentError("timeline", timeline, "is of a step on one device: leave it out")
    if not isinstance(setup, Setup):
        raise ArgumentError("setup", setup, "must be a Setup")
    if setup.execution == "compiled" and not reserved and cluster is None:
        rule = "changes what is reserved and how long a step takes: ask for one of them, or give eager"
        raise ArgumentError("execution", setup.execution, rule)
    if isinstance(config, ModelSpec | ForeignConfig):
        for field, given in (("ignore_fields", ignore_fields), ("text_only", text_only)):
            if given:
                raise ArgumentError(field, given, "the config is read already: give it where it is read")
        model = config
    else:
        model = read_model(config, text_only=text_only, ignore_fields=ignore_fields)
    if isinstance(model, ForeignConfig):
        through = f"{model.model_type or 'its family'} goes through transformers, and"
        if layout is not None:
            raise ArgumentError("layout", "given", f"{through} is measured on one device")
        for field, value in (("cluster", cluster), ("timeline", timeline or None)):
            if value is not None:
                raise ArgumentError(field, "given", f"{through} no step of it is run: leave it out")
        return _analyze_via_transformers(model, setup, step)
    clusters, layout = checked_clusters(cluster, layout)
    if layout is None:
        if reserved and setup.execution == "compiled":
            from counting.layout import check_reserved

            check_reserved(None, setup)
        setup = resolve(setup, model)
    else:
        from counting.layout import resolve_step

        setup, layout = resolve_step(layout, model, setup, reserved=reserved)
    check_clusters(clusters, setup, layout)
    model = with_recompute(model, setup.recompute)
    analysis = _analyze_native(model, setup, step, layout)
    analysis = _with_times(analysis, model, clusters) if clusters else analysis
    analysis = _with_timeline(analysis, analysis.memory, model) if timeline and analysis.memory else analysis
    if not reserved:
        return analysis
    from counting.reserved import memory_with_reserved

    memory, classes = memory_with_reserved(analysis.memory, analysis.rank_classes, model, setup, layout)
    return msgspec.structs.replace(analysis, memory=memory, rank_classes=classes)


def count_by_formula(spec: ModelSpec) -> Counts:
    """Parameters by formula, without a measurement; takes less than a millisecond. For a search over many models."""
    from counting.formulas.parameters import parameters

    return parameters(spec)


def _analyze_native(spec: ModelSpec, setup: Setup, step: bool, layout: Layout | None) -> Analysis:
    from counting.formulas.memory import simulate
    from counting.formulas.model import by_formula
    from counting.measurements.model import measure

    stored = None
    if spec.folder is not None:
        from counting.measurements.checkpoint import count_checkpoint

        stored = count_checkpoint(spec)
    witnesses = measure(spec, setup, step=step)
    witnesses["formula"] = by_formula(spec, setup, step=step)
    witnesses["simulation"] = simulate(spec, setup, step=step)
    measured_dtype = setup.precision_recipe.activation_dtype if step else "bfloat16"
    setup = msgspec.structs.replace(setup, measured_dtype=measured_dtype)
    analysis, counts = _analysis(spec, "measured = formula", setup, NOTES, witnesses, stored)
    if not step:
        return analysis
    core, mtp_core = counts.whole_model().attention_core_flops, counts.mtp.attention_core_flops
    assert counts.training_flops and counts.step_profile and core and mtp_core
    memory = step_memory(spec, setup, counts.step_profile)
    analysis = msgspec.structs.replace(
        analysis,
        training=training_step(
            counts.training_flops, (core + mtp_core if setup.mtp else core) * (setup.micro_batches or 1), setup
        ),
        memory=msgspec.structs.replace(memory, alternatives=step_alternatives(spec, setup, counts)),
    )
    if layout is None:
        return analysis
    from counting.rank_analysis import analyze_ranks

    spread = analyze_ranks(spec, setup, layout, counts, analysis.agreement)
    return msgspec.structs.replace(analysis, **spread._asdict())


def _with_times(analysis: Analysis, spec: ModelSpec, clusters: Sequence[Cluster]) -> Analysis:
    """`analysis` with how long its step takes on each cluster, or with a note why that is not worked out."""
    setup = analysis.setup
    forward_flops = analysis.forward_flops + (analysis.mtp_forward_flops if setup.mtp else 0)
    times = step_times(spec, setup, analysis.layout, clusters, forward_flops=forward_flops)
    notes = analysis.notes if times else (*analysis.notes, NO_TIME_BY_FORMULA)
    return msgspec.structs.replace(analysis, step_time=times, notes=notes)


def _with_timeline(analysis: Analysis, memory: StepMemory, spec: ModelSpec) -> Analysis:
    """`analysis` with the memory of its step over time, for which the step is measured once more: to the same peak."""
    from counting.measurements.step import measure_courses
    from counting.step.timeline import step_timeline

    timeline = step_timeline(spec, analysis.setup, memory, *measure_courses(spec, analysis.setup))
    values = {"step by phases": memory.peak_bytes, "step over time": timeline.peak_bytes}
    check = Check(quantity="step_bytes", scope="step", component="peak", values=values)
    if not check.agree:
        raise DisagreementError(spec.name, [check])
    return msgspec.structs.replace(analysis, timeline=timeline)


def _analyze_via_transformers(foreign: ForeignConfig, setup: Setup, step: bool) -> Analysis:
    """The analysis of a family without modules here: transformers builds it; it has no formulas."""
    from counting.via_transformers.reading.config import read_foreign
    from counting.via_transformers.settings import check_settings

    check_settings(setup, foreign.model_type or "its family")
    model = read_foreign(foreign)  # what it refuses does not wait for torch

    from counting.via_transformers.measure import measure_and_compare

    found = measure_and_compare(model, foreign.folder, resolve(setup, model), step=step)
    analysis, counts = _analysis(model, "measured, no formula", found.setup, found.notes, found.witnesses, found.stored)
    if found.step is None:
        return analysis
    from counting.via_transformers.step.result import step_results

    core = counts.whole_model().attention_core_flops
    assert counts.step_profile and core
    results = step_results(found.step, counts.step_profile, core, found.setup)
    return msgspec.structs.replace(analysis, training=results.training, memory=results.memory)


def _analysis(
    model: "ModelSpec | ForeignModel",
    proof: Proof,
    setup: Setup,
    notes: tuple[str, ...],
    witnesses: Mapping[str, ModelCounts],
    stored: "StoredTotals | None",
) -> tuple[Analysis, ModelCounts]:
    """The result without a step, and the merged counts of all witnesses; `stored` is what a checkpoint says."""
    if stored is not None:
        notes = (*notes, stored.note)
        witnesses = witnesses if stored.totals is None else with_checkpoint(witnesses, stored.totals)
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
        model_flops=model_flops(flops.total) * (setup.micro_batches or 1),
        defaulted_fields=model.defaulted_fields,
        passed_over_fields=model.passed_over_fields,
        ignored_fields=model.ignored_fields,
        agreement=agreement,
        notes=notes,
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
