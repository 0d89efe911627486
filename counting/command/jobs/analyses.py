"""The analysis of each model of a command, with what the command wants to know of its step."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from counting.analysis import Analysis, analyze
from counting.command.arguments import asks_for_reserved, ignored_fields_of
from counting.command.checks import times_a_step
from counting.command.hints import why_not_timed
from counting.command.lengths import common_length, with_length_from
from counting.command.output_file import write_whole
from counting.command.progress import Progress
from counting.cost.cluster import Cluster
from counting.cost.hardware import Gpu
from counting.setup import Setup, resolve
from counting.step.memory import DIVIDED_NOTE
from counting.step.time import NotTimed
from counting.timing import check_clusters
from torch_models.errors import ArgumentError, ConfigError, UserError, show_name
from torch_models.fields.config import ForeignConfig, read_models
from torch_models.layout import Layout
from torch_models.spec import ModelSpec

if TYPE_CHECKING:
    from counting.cost.step_time import ChromeTrace
    from counting.step.fit import Fit


def analyses_of(
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
        timeline = isinstance(model, ModelSpec) and _shows_memory(options)
        analysis = analyze(model, setup, layout=layout, reserved=reserved, cluster=timed or None, timeline=timeline)
        analysis = msgspec.structs.replace(analysis, not_timed=not_timed)
        if not reserved and asks_for_reserved(options) and isinstance(model, ModelSpec):
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
        yield msgspec.structs.replace(analysis, fits=fits_of(analysis, gpus)) if gpus else analysis


def _check_step_flags(config: str, model: ModelSpec | ForeignConfig, options: argparse.Namespace) -> None:
    """Raises UserError if the model goes through transformers and a flag needs more than one measured step of it."""
    if isinstance(model, ForeignConfig) and (flags := _flags_of_native_families(options)):
        raise UserError(
            f"{config}: {model.model_type or 'its family'} goes through transformers, where a step is measured on one "
            f"device, without allocator and time: leave out {', '.join(f'--{flag}' for flag in flags)}"
        )


def _flags_of_native_families(options: argparse.Namespace) -> list[str]:
    """The given flags that need modules of this project: layouts, the allocator, memory over time, how long it takes.

    A file of GPUs or a run may be timed by the way; that is left out without an error.
    """
    flags = (
        "layout",
        "reserved",
        "execution",
        "expandable_segments",
        "trace_memory",
        "cluster",
        "power_watts",
        "trace",
    )
    given = [flag for flag in flags if getattr(options, flag) not in (None, False)]
    if options.figure is not None:
        from counting.command.jobs.figures import draws_memory

        given += ["figure memory"] if draws_memory(options) else []
    return given


def _shows_memory(options: argparse.Namespace) -> bool:
    if options.figure is None and options.html is None:
        return False
    from counting.command.jobs.figures import shows_memory

    return shows_memory(options)


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
    if not isinstance(model, ModelSpec):
        return False
    if not asks_for_reserved(options) or options.reserved is not None:
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


def fits_of(analysis: Analysis, gpus: Sequence[Gpu]) -> "tuple[Fit, ...]":
    """Whether the step fits each of `gpus`."""
    from counting.cost.fits import fits_on

    return fits_on(analysis, gpus)


def _memory_trace(model: ModelSpec, analysis: Analysis) -> bytes:
    from counting.reserved import memory_trace

    return memory_trace(model, analysis.setup, analysis.layout, analysis.rank_classes)


def _step_trace(model: ModelSpec, analysis: Analysis, cluster: Cluster) -> "ChromeTrace":
    from counting.timing import trace_of_step

    return trace_of_step(model, analysis.setup, analysis.layout, cluster)
