"""All results of one command."""

import argparse
from typing import TYPE_CHECKING

from counting.command.arguments import (
    beyond_of,
    budget_of,
    chosen_gpus,
    cluster_of,
    clusters_of,
    laws_of,
    layout_of,
    own_gpus,
    run_plan_of,
    setup_of,
)
from counting.command.checks import given_flags
from counting.command.flags import PUBLISHED
from counting.command.jobs.analyses import analyses_of, fits_of
from counting.command.jobs.money import (
    beyond_compute_of,
    check_design_family,
    compared,
    designed,
    side_by_side,
    spent_on_models,
)
from counting.command.jobs.outputs import check_outputs
from counting.command.jobs.published import claim_of_bill, published_bills, published_memory, published_throughput
from counting.command.lengths import comparison_notes, length_warnings
from counting.command.progress import Progress
from counting.cost.hardware import load_gpus
from counting.cost.run import plan_run
from torch_models.errors import ArgumentError, UserError

if TYPE_CHECKING:
    from counting.report import Results


def results_of(options: argparse.Namespace, progress: Progress) -> "Results":
    """All requested results. Every flag is parsed before the first model is measured."""
    check_outputs(options)
    cluster = cluster_of(options)
    own = own_gpus(options, cluster)
    gpus = chosen_gpus(options, own)
    if options.figure is not None:
        from counting.command.jobs.figures import check_readable

        check_readable(options, len(gpus))
    layout, clusters = layout_of(options, gpus, cluster), clusters_of(options, gpus, cluster)
    asked = beyond_of(options)
    laws = laws_of(options)
    budget, run_plan, setup = budget_of(options, own, laws), run_plan_of(options, own), setup_of(options)
    if options.published not in (None, *PUBLISHED):
        raise ArgumentError("published", options.published, f"is not known: choose from {', '.join(PUBLISHED)}")
    check_design_family(options.design_family)
    if options.trace is not None and len(clusters) != 1:
        names = ", ".join(one.gpu.name for one in clusters)
        raise UserError(f"--trace writes one file: name one GPU, not {len(clusters)}: {names}")
    read_by_people = not options.json or options.html is not None
    analyses = list(analyses_of(options, setup, layout, gpus, clusters, progress))
    spent = spent_on_models(analyses, budget) if budget and analyses else []
    from counting.report import Results

    return Results(
        analyses=analyses,
        runs=[plan_run(analysis, run_plan) for analysis in analyses] if run_plan and not options.compare else [],
        comparison=compared(analyses, run_plan) if run_plan and options.compare else None,
        budget=budget,
        spent=spent,
        beyond=beyond_compute_of(asked, budget, analyses, spent),
        laws=side_by_side(laws, budget, analyses) if laws and budget else None,
        design=designed(budget, options.design, options.design_family, progress)
        if budget and options.design is not None
        else None,
        published=published_bills(progress) if options.published == PUBLISHED[0] else None,
        published_memory=published_memory(progress) if options.published == PUBLISHED[1] else None,
        published_throughput=published_throughput(progress) if options.published == PUBLISHED[2] else None,
        claim=claim_of_bill(progress) if options.claim else None,
        plan=given_flags(options),
        warnings=[*length_warnings(analyses), *(comparison_notes(analyses) if options.compare else [])],
        on_catalogue=[fits_of(analysis, load_gpus()) for analysis in analyses] if read_by_people else [],
    )
