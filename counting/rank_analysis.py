"""A step that is spread over ranks: measured on a group of any size, and reconciled with closed forms."""

from typing import NamedTuple

from msgspec import structs

from counting.alternatives import rank_alternatives
from counting.counts import ModelCounts
from counting.ranks.result import RankAnalysis, Undivided, rank_classes, totals_over_ranks, worst_of_classes
from counting.ranks.shallow import shallow
from counting.reconcile import Agreement, all_checks, reconcile
from counting.setup import Setup
from torch_models.layout import Layout
from torch_models.spec import ModelSpec

PROOF = "measured = formula"


class SpreadStep(NamedTuple):
    """The fields of an `Analysis` that a layout sets."""

    layout: Layout  # resolved
    rank_classes: tuple[RankAnalysis, ...]
    undivided: Undivided
    agreement: Agreement


def analyze_ranks(
    spec: ModelSpec, setup: Setup, layout: Layout, counts: ModelCounts, agreement: Agreement
) -> SpreadStep:
    """Measure each class of equal ranks under `layout`; `setup` and `layout` are resolved.

    `counts` are those of the undivided model, and `agreement` has their checks, to which those of the ranks are added.

    Raises `DisagreementError` if measurement and formula differ, or if the ranks do not add up to the undivided model.
    """
    from counting.formulas.layouts import ranks_by_formula, replicated_forward_flops, replicated_parameters
    from counting.measurements.ranks import measure_ranks

    witnesses = {
        "ranks measured": measure_ranks(spec, setup, layout),
        "ranks by formula": ranks_by_formula(spec, setup, layout),
    }
    profile, of_ranks = reconcile(spec.name, witnesses)
    assert setup.micro_batches is not None, "a resolved setup"
    classes = rank_classes(shallow(spec), setup, profile, PROOF)
    replicated_flops = replicated_forward_flops(spec, setup, sequence_parallel=layout.sequence_parallel)
    undivided = _undivided(counts, setup, replicated_parameters(spec, setup), replicated_flops)
    agreements = [agreement, of_ranks]
    if layout.expert_imbalance == 1:  # else the busiest rank stands for all, and its rows are not those of the mean
        both = {
            "sum over ranks": totals_over_ranks(classes, setup.micro_batches),
            "undivided model": undivided.over_ranks(layout),
        }
        agreements.append(reconcile(spec.name, both)[1])
    return SpreadStep(layout, _with_alternatives(spec, setup, layout, classes), undivided, all_checks(agreements))


def _with_alternatives(
    spec: ModelSpec, setup: Setup, layout: Layout, classes: tuple[RankAnalysis, ...]
) -> tuple[RankAnalysis, ...]:
    """`classes`, of which the one with the largest peak has the variants that need less memory."""
    worst = worst_of_classes(classes)
    found = rank_alternatives(spec, setup, layout, worst)
    memory = structs.replace(worst.memory, alternatives=found)
    return tuple(structs.replace(each, memory=memory) if each is worst else each for each in classes)


def _undivided(counts: ModelCounts, setup: Setup, parameters: int, forward_flops: int) -> Undivided:
    """The undivided model with what of it is the same on each rank of tp, as in the arguments."""
    whole, mtp = counts.whole_model(), counts.mtp
    assert whole.parameters and whole.forward_flops and mtp.parameters and mtp.forward_flops
    return Undivided(
        parameters=whole.parameters.total + (mtp.parameters.total if setup.mtp else 0),
        expert_parameters=whole.parameters.routed_experts + (mtp.parameters.routed_experts if setup.mtp else 0),
        copied_parameters=0,
        replicated_parameters=parameters,
        forward_flops=whole.forward_flops.total + (mtp.forward_flops.total if setup.mtp else 0),
        replicated_forward_flops=forward_flops,
    )
