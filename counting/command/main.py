"""The command: flags in, text or JSON out, and an exit status."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from counting.analysis import Analysis, analyze
from counting.command.arguments import (
    asks_for_reserved,
    budget_of,
    chosen_gpus,
    cluster_of,
    clusters_of,
    ignored_fields_of,
    layout_of,
    own_gpus,
    run_plan_of,
    setup_of,
)
from counting.command.checks import given_flags, times_a_step
from counting.command.flags import PUBLISHED, read_flags
from counting.command.hints import error_line, why_not_timed
from counting.command.lengths import common_length, comparison_notes, length_warnings, with_length_from
from counting.command.output_file import files_of_config, refuse_shared_files, refuse_unwritable, write_whole
from counting.command.progress import Progress
from counting.cost.budget import BudgetPlan
from counting.cost.cluster import Cluster
from counting.cost.hardware import Gpu, load_gpus
from counting.cost.run import RunPlan, plan_run
from counting.reconcile import DisagreementError
from counting.setup import Setup, resolve
from counting.step.memory import DIVIDED_NOTE
from counting.step.time import NotTimed
from counting.timing import check_clusters
from torch_models.errors import ArgumentError, ConfigError, UserError, show_name
from torch_models.fields.config import ForeignConfig, read_models
from torch_models.layout import Layout
from torch_models.spec import ModelSpec

if TYPE_CHECKING:
    from counting.cost.budget_on_model import BudgetOnModel
    from counting.cost.comparison import Comparison
    from counting.cost.design_for_budget import Design
    from counting.cost.step_time import ChromeTrace
    from counting.published.claim import Claim
    from counting.published.memory import ExaminedMemory
    from counting.published.runs import ExaminedRun
    from counting.published.throughput import Throughput
    from counting.report import Results
    from counting.step.fit import Fit

CALIBRATE = "calibrate"  # the sub-command
EXIT_USER_ERROR = 2
EXIT_DISAGREEMENT = 3
EXIT_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 0, 2 for an error of the user, 3 if two witnesses differ."""
    options = argparse.Namespace(plan=None, from_plan=())
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments and arguments[0] == CALIBRATE:
            _calibrate(arguments[1:])
            return 0
        options = read_flags(arguments)
        _run(options)
    except UserError as error:
        print(error_line(error, options.plan, options.from_plan), file=sys.stderr)
        return EXIT_USER_ERROR
    except DisagreementError as error:
        print(f"error: witnesses disagree\n{error}", file=sys.stderr)
        return EXIT_DISAGREEMENT
    return 0


def _run(options: argparse.Namespace) -> None:
    """Work out and print the results. A design is written first, so that nothing is printed if that fails."""
    progress = Progress()
    try:
        results = _results(options, progress)
    finally:
        progress.erase()
    if results.design is not None:
        write_whole(options.design, results.design.config_json(), overwrite=options.force)
    from counting.report import json_document, print_results

    for warning in length_warnings(results.analyses):
        print(f"warning: {warning}", file=sys.stderr)
    if options.json:
        print(json_document(results))
    else:
        print_results(results, options.design, details=options.details, proof=options.proof)


def _results(options: argparse.Namespace, progress: Progress) -> "Results":
    """All requested results. Every flag is parsed before the first model is measured."""
    _check_files(options)
    cluster = cluster_of(options)
    own = own_gpus(options, cluster)
    gpus = chosen_gpus(options, own)
    layout, clusters = layout_of(options, gpus, cluster), clusters_of(options, gpus, cluster)
    budget, run_plan, setup = budget_of(options, own), run_plan_of(options, own), setup_of(options)
    if options.published not in (None, *PUBLISHED):
        raise ArgumentError("published", options.published, f"is not known: choose from {', '.join(PUBLISHED)}")
    if options.design is not None:
        refuse_unwritable(options.design, overwrite=options.force)
    if options.trace is not None and len(clusters) != 1:
        names = ", ".join(one.gpu.name for one in clusters)
        raise UserError(f"--trace writes one file: name one GPU, not {len(clusters)}: {names}")
    for path in (options.trace, options.trace_memory):
        if path is not None:
            refuse_unwritable(path, overwrite=options.force)
    analyses = list(_analyses(options, setup, layout, gpus, clusters, progress))
    from counting.report import Results

    return Results(
        analyses=analyses,
        runs=[plan_run(analysis, run_plan) for analysis in analyses] if run_plan and not options.compare else [],
        comparison=_compared(analyses, run_plan) if run_plan and options.compare else None,
        budget=budget,
        spent=_spent(analyses, budget) if budget and analyses else [],
        design=_designed(budget, options.design, progress) if budget and options.design is not None else None,
        published=_published(progress) if options.published == PUBLISHED[0] else None,
        published_memory=_published_memory(progress) if options.published == PUBLISHED[1] else None,
        published_throughput=_published_throughput(progress) if options.published == PUBLISHED[2] else None,
        claim=_claim(progress) if options.claim else None,
        plan=given_flags(options),
        warnings=[*length_warnings(analyses), *(comparison_notes(analyses) if options.compare else [])],
        on_catalogue=[] if options.json else [_fits(analysis, load_gpus()) for analysis in analyses],
    )


def _check_files(options: argparse.Namespace) -> None:
    """Raises UserError if a file that is written is also one that is read, or is written twice."""
    configs = [file for config in options.model_config or () for file in files_of_config(config)]
    refuse_shared_files(
        {"--design": options.design, "--trace": options.trace, "--trace_memory": options.trace_memory},
        {
            "--model_config": configs,
            "--plan": options.plan,
            "--cluster": options.cluster,
            "--gpu_file": options.gpu_file,
        },
    )


def _analyses(
    options: argparse.Namespace,
    setup: Setup,
    layout: Layout | None,
    gpus: Sequence[Gpu],
    clusters: Sequence[Cluster],
    progress: Progress,
) -> Iterator[Analysis]:
    """The analysis of each model, with its fit on `gpus` and its step on `clusters`.

    Compared models get a common sequence length.
    """
    models = read_models(options.model_config, text_only=options.text_only, ignore_fields=ignored_fields_of(options))
    for config, model in zip(options.model_config, models, strict=True):
        _check_step_flags(config, model, options)
        if layout is not None and isinstance(model, ModelSpec):  # before the first model is measured
            _resolved(layout, model, setup)
    source = None
    if options.compare and setup.sequence_length is None:
        setup, source = common_length(models, setup)
    for number, model in enumerate(models, start=1):
        progress.show(f"measuring {model.name} ({number} of {len(models)}) ...")
        reserved = _asks_for_reserved(options, model, setup, layout)
        timed, not_timed = _to_time(options, model, setup, layout, clusters)
        analysis = analyze(model, setup, layout=layout, reserved=reserved, cluster=timed or None)
        analysis = msgspec.structs.replace(analysis, not_timed=not_timed)
        if not reserved and asks_for_reserved(options):
            analysis = _without_reserved(analysis)
        if options.trace_memory is not None and isinstance(model, ModelSpec):
            write_whole(options.trace_memory, _memory_trace(model, analysis), overwrite=options.force)
        if options.trace is not None and isinstance(model, ModelSpec):
            trace = _step_trace(model, analysis, timed[0])
            write_whole(options.trace, trace.document, overwrite=options.force)
            if trace.left_out:
                note = f"{show_name(options.trace)}: {trace.left_out}."
                progress.erase()
                print(f"note: {note}", file=sys.stderr)
                analysis = msgspec.structs.replace(analysis, notes=(*analysis.notes, note))
        if source is not None:
            analysis = with_length_from(analysis, source)
        yield msgspec.structs.replace(analysis, fits=_fits(analysis, gpus)) if gpus else analysis


def _check_step_flags(config: str, model: ModelSpec | ForeignConfig, options: argparse.Namespace) -> None:
    """Raises UserError if the model goes through transformers and a flag needs a training step."""
    if isinstance(model, ForeignConfig) and (flags := _flags_of_a_step_alone(options)):
        raise UserError(
            f"{config}: {model.model_type or 'its family'} goes through transformers, and no training step of it is "
            f"measured: leave out {', '.join(f'--{flag}' for flag in flags)}"
        )


def _flags_of_a_step_alone(options: argparse.Namespace) -> list[str]:
    """The given flags that only apply to a training step; a run also uses precision, optimiser and GPUs."""
    flags = ["recompute", "loss_chunk", "clip_gradients", "zero_gradients", "layout"]
    flags += ["reserved", "execution", "expandable_segments", "trace_memory", "cluster", "power_watts", "trace"]
    flags += [] if options.tokens else ["precision", "optimizer", "micro_batches", "global_batch_tokens"]
    flags += [] if options.tokens or options.training_budget else ["gpus", "gpu_file"]
    return [flag for flag in flags if getattr(options, flag) not in (None, False)]


# --- Modules that few commands need are imported on demand -----------------------------------------------------


def _calibrate(arguments: Sequence[str]) -> None:
    from counting.command.calibrate.command import calibrate_command

    calibrate_command(arguments)


def _resolved(layout: Layout, model: ModelSpec, setup: Setup) -> tuple[Setup, Layout]:
    from counting.layout import resolve_step

    return resolve_step(layout, model, setup)


def _to_time(
    options: argparse.Namespace,
    model: ModelSpec | ForeignConfig,
    setup: Setup,
    layout: Layout | None,
    clusters: Sequence[Cluster],
) -> tuple[tuple[Cluster, ...], tuple[NotTimed, ...]]:
    """The clusters on which the model's step is timed, and of the others why not.

    GPUs are named for other reasons too, so one whose speed is not known is no error, unless its time is asked for.
    """
    if not isinstance(model, ModelSpec) or not clusters:
        return (), ()
    of_step = None if layout is None else _resolved(layout, model, setup)[1]
    asked = any(getattr(options, flag) is not None for flag in ("cluster", "power_watts", "trace"))
    timed, not_timed = [], []
    for cluster in clusters:
        try:
            check_clusters([cluster], setup, of_step)
        except UserError as error:
            if asked:
                raise _of_cluster_file(error, options) from None
            name, of_run = cluster.gpu.name, options.tokens is not None
            not_timed.append(why_not_timed(error, name, of_run=of_run))
        else:
            timed.append(cluster)
    return tuple(timed), tuple(not_timed)


def _of_cluster_file(error: UserError, options: argparse.Namespace) -> UserError:
    """The error with the name of the cluster's file, where a flag does not say the same."""
    if options.cluster is None:
        return error
    if not isinstance(error, ArgumentError):
        return UserError(f"{show_name(options.cluster)}: {error}")
    if getattr(options, error.field, None) is not None:
        return error
    field = "gpu" if error.field == "gpus" else error.field
    return ConfigError(field, error.value, error.rule, show_name(options.cluster))


def _asks_for_reserved(
    options: argparse.Namespace, model: ModelSpec | ForeignConfig, setup: Setup, layout: Layout | None
) -> bool:
    """Whether what the allocator reserves is estimated: on request, else where that is the default and quick."""
    asked = options.reserved is not None and asks_for_reserved(options)
    if asked and layout is not None and layout.framework == "megatron":
        raise ArgumentError("reserved", True, "is not estimated with framework megatron, by formula: leave it out")
    if not asks_for_reserved(options) or options.reserved is not None or not isinstance(model, ModelSpec):
        return asks_for_reserved(options)
    of_time = setup.execution == "compiled" and times_a_step(options)  # and what is reserved need not be the question
    if options.expandable_segments or options.trace_memory is not None:
        return True
    if setup.execution == "compiled" and not of_time:
        return True
    from counting.layout import can_reserve
    from counting.reserved import takes_long

    setup, resolved = (resolve(setup, model), None) if layout is None else _resolved(layout, model, setup)
    return not takes_long(model, setup, resolved) and (not of_time or can_reserve(resolved, setup))


def _without_reserved(analysis: Analysis) -> Analysis:
    """`analysis` with a note why what is reserved is left out."""
    from counting.layout import can_reserve
    from counting.reserved import with_note_of_left_out

    notes = {} if can_reserve(analysis.layout, analysis.setup) else {"note": DIVIDED_NOTE}
    memory, classes = with_note_of_left_out(analysis.memory, analysis.rank_classes, **notes)
    return msgspec.structs.replace(analysis, memory=memory, rank_classes=classes)


def _fits(analysis: Analysis, gpus: Sequence[Gpu]) -> "tuple[Fit, ...]":
    from counting.cost.fits import fits_on

    return fits_on(analysis, gpus)


def _memory_trace(model: ModelSpec, analysis: Analysis) -> bytes:
    from counting.reserved import memory_trace

    return memory_trace(model, analysis.setup, analysis.layout, analysis.rank_classes)


def _step_trace(model: ModelSpec, analysis: Analysis, cluster: Cluster) -> "ChromeTrace":
    from counting.timing import trace_of_step

    return trace_of_step(model, analysis.setup, analysis.layout, cluster)


def _compared(analyses: Sequence[Analysis], plan: RunPlan) -> "Comparison":
    from counting.cost.comparison import compare

    return compare(analyses, plan)


def _spent(analyses: Sequence[Analysis], budget: BudgetPlan) -> "list[BudgetOnModel]":
    from counting.cost.budget_on_model import spend_on

    return [spend_on(analysis, budget) for analysis in analyses]


def _designed(budget: BudgetPlan, path: str, progress: Progress) -> "Design":
    from counting.cost.design_for_budget import design_for_budget

    progress.show("designing a model ...")
    return design_for_budget(budget, Path(path).stem)


def _published(progress: Progress) -> "tuple[ExaminedRun, ...]":
    from counting.published.runs import examine, load_published_runs

    runs, examined = load_published_runs(), []
    for number, run in enumerate(runs, start=1):
        progress.show(f"working out {run.name} ({number} of {len(runs)}) ...")
        examined.append(examine(run))
    return tuple(examined)


def _published_memory(progress: Progress) -> "tuple[ExaminedMemory, ...]":
    from counting.published.memory import examine_memory, load_published_memory

    rows, examined = load_published_memory(), []
    for number, row in enumerate(rows, start=1):
        progress.show(f"running {row.name} ({number} of {len(rows)}) ...")
        examined.append(examine_memory(row))
    return tuple(examined)


def _published_throughput(progress: Progress) -> "Throughput":
    from counting.published.throughput import examine_throughput, load_published_throughput, summed_up

    rows, examined = load_published_throughput().rows, []
    for number, row in enumerate(rows, start=1):
        progress.show(f"running {row.name} ({number} of {len(rows)}) ...")
        examined.append(examine_throughput(row))
    return summed_up(examined)


def _claim(progress: Progress) -> "Claim":
    from counting.published.claim import examine_claim

    progress.show("working out the claim ...")
    return examine_claim()
