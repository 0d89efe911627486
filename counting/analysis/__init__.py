"""The cost of one model: measured, reconciled with the formulas, and returned as data without torch objects.

    from counting import Setup, analyze
    print(analyze("deepseek_v3", Setup(sequence_length=4096)).forward_flops)

Torch is imported when a model is measured, not when this module is imported.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from counting.alternatives import other_setups, step_alternatives
from counting.analysis.result import Analysis as Analysis
from counting.analysis.result import LayerAnalysis as LayerAnalysis
from counting.analysis.result import ParameterTotals as ParameterTotals
from counting.analysis.result import Proof, analysis_of_witnesses
from counting.cost.cluster import Cluster
from counting.counts import Counts
from counting.reconcile import Check, DisagreementError
from counting.scans import products_by_formula
from counting.setup import Setup, resolve
from counting.step.flops import training_step
from counting.step.memory import StepMemory, step_memory
from counting.step.notes import INDEXER_NOTE, NOTES
from counting.step.time import NO_TIME_BY_FORMULA
from counting.timing import check_clusters, checked_clusters, step_times
from torch_models.errors import ArgumentError
from torch_models.fields.config import ForeignConfig, read_model
from torch_models.layout import Layout
from torch_models.recomputed_layers import with_recompute
from torch_models.spec import ModelSpec

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
        through = f"{model.model_type or 'its family'} goes through transformers"
        asked = {"layout": layout, "cluster": cluster, "timeline": timeline or None, "reserved": reserved or None}
        for name in (name for name, value in asked.items() if value is not None):
            rule = f"{through}, where a step is measured on one device, without allocator and time: leave it out"
            raise ArgumentError(name, "given", rule)
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
    analysis, counts = analysis_of_witnesses(spec, "measured = formula", setup, NOTES, witnesses, stored)
    if analysis.forward_only_flops:
        analysis = msgspec.structs.replace(analysis, notes=(*analysis.notes, INDEXER_NOTE))
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
    forward_only = analysis.forward_only_flops + (analysis.mtp_forward_only_flops if setup.mtp else 0)
    times = step_times(spec, setup, analysis.layout, clusters, forward_flops=forward_flops, forward_only=forward_only)
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

    setup = resolve(setup, model)
    found = measure_and_compare(model, foreign.folder, setup, step=step, others=other_setups(setup))
    witnesses = found.witnesses
    proof: Proof = "measured, no formula"
    if any(products_by_formula(scan) for of_layer in found.scans for scan in of_layer):
        from counting.formulas.state_spaces import count_scans

        witnesses["formula"] = count_scans(witnesses["numel"], found.scans)
        proof = "measured; scans by formula"
    analysis, counts = analysis_of_witnesses(
        model, proof, found.setup, found.notes, witnesses, found.stored, found.scans
    )
    if analysis.forward_only_flops:
        analysis = msgspec.structs.replace(analysis, notes=(*analysis.notes, INDEXER_NOTE))
    if found.step is None:
        return analysis
    from counting.via_transformers.step.result import step_results

    core = counts.whole_model().attention_core_flops
    assert counts.step_profile and core
    results = step_results(found.step, counts.step_profile, core, found.setup, found.variants)
    return msgspec.structs.replace(analysis, training=results.training, memory=results.memory)
