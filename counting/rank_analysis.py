"""A step that is spread over ranks: measured on a group of any size, and reconciled with closed forms."""

from typing import NamedTuple

from msgspec import structs

from counting.alternatives import rank_alternatives
from counting.counts import ModelCounts
from counting.ranks.result import (
    RankAnalysis,
    Undivided,
    pipeline_classes,
    rank_classes,
    totals_over_ranks,
    worst_of_classes,
)
from counting.ranks.shallow import shallow
from counting.reconcile import Agreement, Check, DisagreementError, all_checks, reconcile
from counting.setup import Setup
from torch_models.layout import Layout
from torch_models.spec import ModelSpec
from torch_models.stages import stages_of

PROOF = "measured = formula"
BOUNDED = "measured, no formula"  # of the peak, which has a bound by formula; all else has formulas


class SpreadStep(NamedTuple):
    """The fields of an `Analysis` that a layout sets."""

    layout: Layout  # resolved
    rank_classes: tuple[RankAnalysis, ...]
    undivided: Undivided | None  # None of an estimate, which no sum is compared with
    agreement: Agreement


def analyze_ranks(
    spec: ModelSpec, setup: Setup, layout: Layout, counts: ModelCounts, agreement: Agreement
) -> SpreadStep:
    """Measure each class of equal ranks under `layout`; `setup` and `layout` are resolved.

    `counts` are those of the undivided model, and `agreement` has their checks, to which those of the ranks are added.

    By Megatron-LM's rules there is an estimate by formula, and nothing is measured.

    Raises `DisagreementError` if measurement and formula differ, or if the ranks do not add up to the undivided model.
    """
    if layout.framework == "megatron":
        from counting.formulas.megatron import megatron_classes

        return SpreadStep(layout, megatron_classes(spec, setup, layout), None, agreement)
    from counting.formulas.layouts import replicated_forward_flops, replicated_parameters

    classes, of_ranks = (_of_pipeline if layout.pp > 1 else _of_ranks)(spec, setup, layout)
    assert setup.micro_batches is not None, "a resolved setup"
    replicated_flops = replicated_forward_flops(spec, setup, sequence_parallel=layout.sequence_parallel)
    undivided = _undivided(spec, counts, setup, layout, replicated_parameters(spec, setup), replicated_flops)
    agreements = [agreement, *of_ranks]
    if layout.expert_imbalance == 1:  # else the busiest rank stands for all, and its rows are not those of the mean
        both = {
            "sum over ranks": totals_over_ranks(classes, setup.micro_batches),
            "undivided model": undivided.over_ranks(layout),
        }
        agreements.append(reconcile(spec.name, both)[1])
    return SpreadStep(layout, _with_alternatives(spec, setup, layout, classes), undivided, all_checks(agreements))


def _of_ranks(spec: ModelSpec, setup: Setup, layout: Layout) -> tuple[tuple[RankAnalysis, ...], list[Agreement]]:
    """The classes of ranks without a pipeline, and the checks of both witnesses."""
    from counting.formulas.layouts import ranks_by_formula
    from counting.measurements.ranks import measure_ranks

    profile, checks = reconcile(
        spec.name,
        {
            "ranks measured": measure_ranks(spec, setup, layout),
            "ranks by formula": ranks_by_formula(spec, setup, layout),
        },
    )
    return rank_classes(shallow(spec), setup, profile, PROOF), [checks]


def _of_pipeline(spec: ModelSpec, setup: Setup, layout: Layout) -> tuple[tuple[RankAnalysis, ...], list[Agreement]]:
    """The classes of the ranks of a pipeline, and the checks of both witnesses of each place in it."""
    from counting.formulas.layouts import pipeline_by_formula
    from counting.measurements.ranks import measure_pipeline

    found = [
        reconcile(spec.name, {"ranks measured": measured, "ranks by formula": computed})
        for measured, computed in zip(
            measure_pipeline(spec, setup, layout), pipeline_by_formula(spec, setup, layout), strict=True
        )
    ]
    profiles = [profile for profile, _ in found]
    bounded = any(profile.peak_bound_bytes is not None for profile in profiles)
    classes = pipeline_classes(stages_of(spec, layout), setup, profiles, BOUNDED if bounded else PROOF)
    for each in classes:
        bound = profiles[each.stage].peak_bound_bytes
        if bound is not None and each.memory.peak_bytes > bound:
            values = {"ranks measured": each.memory.peak_bytes, "bound by formula": bound}
            check = Check(quantity="rank_bytes", scope=f"rank {each.first_rank}", component="peak", values=values)
            raise DisagreementError(spec.name, [check])
    return classes, [checks for _, checks in found]


def _with_alternatives(
    spec: ModelSpec, setup: Setup, layout: Layout, classes: tuple[RankAnalysis, ...]
) -> tuple[RankAnalysis, ...]:
    """`classes`, of which the one with the largest peak has the variants that need less memory."""
    worst = worst_of_classes(classes)
    found = rank_alternatives(spec, setup, layout, worst)
    memory = structs.replace(worst.memory, alternatives=found)
    return tuple(structs.replace(each, memory=memory) if each is worst else each for each in classes)


def _undivided(
    spec: ModelSpec, counts: ModelCounts, setup: Setup, layout: Layout, parameters: int, forward_flops: int
) -> Undivided:
    """The undivided model with what of it is the same on each rank of tp, as in the last two arguments."""
    whole, mtp = counts.whole_model(), counts.mtp
    assert whole.parameters and whole.forward_flops and mtp.parameters and mtp.forward_flops
    assert whole.frozen_parameters is not None and mtp.frozen_parameters is not None
    frozen = whole.frozen_parameters + (mtp.frozen_parameters if setup.mtp else 0)
    return Undivided(
        parameters=whole.parameters.total - frozen + (mtp.parameters.total if setup.mtp else 0),
        expert_parameters=whole.parameters.routed_experts + (mtp.parameters.routed_experts if setup.mtp else 0),
        copied_parameters=spec.vocab_size * spec.hidden_size if setup.mtp and layout.pp > 1 else 0,
        replicated_parameters=parameters,
        forward_flops=whole.forward_flops.total + (mtp.forward_flops.total if setup.mtp else 0),
        replicated_forward_flops=forward_flops,
    )
