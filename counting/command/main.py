"""The command: flags in, text or JSON out, and an exit status."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from counting.analysis import Analysis, analyze
from counting.command.arguments import budget_of, run_plan_of, setup_of
from counting.command.flags import read_flags
from counting.command.hints import error_line
from counting.command.output_file import refuse_unwritable, write_whole
from counting.cost.budget import BudgetPlan
from counting.cost.run import RunPlan, plan_run
from counting.reconcile import DisagreementError
from counting.setup import Setup
from torch_models.errors import UserError
from torch_models.fields.config import ForeignConfig, read_model

if TYPE_CHECKING:
    from counting.cost.budget_on_model import BudgetOnModel
    from counting.cost.comparison import Comparison
    from counting.cost.design_for_budget import Design
    from counting.published.claim import Claim
    from counting.published.runs import ExaminedRun
    from counting.report import Results

EXIT_USER_ERROR = 2
EXIT_DISAGREEMENT = 3
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status: 0, 2 for what the user can mend, 3 where two witnesses differ."""
    try:
        _run(read_flags(arguments))
    except UserError as error:
        print(error_line(error), file=sys.stderr)
        return EXIT_USER_ERROR
    except DisagreementError as error:
        print(f"error: witnesses disagree\n{error}", file=sys.stderr)
        return EXIT_DISAGREEMENT
    return 0


def _run(options: argparse.Namespace) -> None:
    """A design is written before anything is printed, so that nothing is printed where that fails."""
    results = _results(options)
    if results.design is not None:
        write_whole(options.design, results.design.config_json(), overwrite=options.force)
    from counting.report import json_document, print_results

    if options.json:
        print(json_document(results))
    else:
        print_results(results, options.design)


def _results(options: argparse.Namespace) -> "Results":
    """All that the flags ask for; every flag is read before the first model is measured."""
    budget, run_plan, setup = budget_of(options), run_plan_of(options), setup_of(options)
    if options.design is not None:
        refuse_unwritable(options.design, overwrite=options.force)
    analyses = [_analysis(config, setup, options) for config in options.model_config]
    if options.mtp == "on" and not any(analysis.setup.mtp for analysis in analyses):
        raise UserError(
            "--mtp = on: no model here has multi-token prediction (num_nextn_predict_layers); leave it out or say off"
        )
    from counting.report import Results

    return Results(
        analyses=analyses,
        runs=[plan_run(analysis, run_plan) for analysis in analyses] if run_plan and not options.compare else [],
        comparison=_compared(analyses, run_plan) if run_plan and options.compare else None,
        budget=budget,
        spent=_spent(analyses, budget) if budget and analyses else [],
        design=_designed(budget, options.design) if budget and options.design is not None else None,
        published=_published() if options.published else None,
        claim=_claim() if options.claim else None,
    )


def _analysis(config: str, setup: Setup, options: argparse.Namespace) -> Analysis:
    """What one model costs, a training step included; none is measured of a model that goes through transformers."""
    model = read_model(config)
    if isinstance(model, ForeignConfig) and (flags := _flags_of_a_step_alone(options)):
        raise UserError(
            f"{config}: {model.model_type or 'its family'} goes through transformers, and no training step of it is "
            f"measured: leave out {', '.join(f'--{flag}' for flag in flags)}"
        )
    return analyze(model, setup)


def _flags_of_a_step_alone(options: argparse.Namespace) -> list[str]:
    """The flags given that mean nothing without a step; a run has a precision and an optimiser too."""
    flags = ["recompute", "loss_chunk"] + ([] if options.tokens else ["precision", "optimizer"])
    return [flag for flag in flags if getattr(options, flag) is not None]


# --- What few commands need is imported when it is asked for ----------------------------------------------------


def _compared(analyses: Sequence[Analysis], plan: RunPlan) -> "Comparison":
    from counting.cost.comparison import compare

    return compare(analyses, plan)


def _spent(analyses: Sequence[Analysis], budget: BudgetPlan) -> "list[BudgetOnModel]":
    from counting.cost.budget_on_model import spend_on

    return [spend_on(analysis, budget) for analysis in analyses]


def _designed(budget: BudgetPlan, path: str) -> "Design":
    from counting.cost.design_for_budget import design_for_budget

    return design_for_budget(budget, Path(path).stem)


def _published() -> "tuple[ExaminedRun, ...]":
    from counting.published.runs import examine_published_runs

    return examine_published_runs()


def _claim() -> "Claim":
    from counting.published.claim import examine_claim

    return examine_claim()
