"""The first screen: a short answer to the command, in lines that fit the width of the output."""

from collections.abc import Iterator
from typing import Literal, NamedTuple

from counting.report.results import Results
from counting.report.screen.lines import Lines

LINES_OF_ONE, LINES_OF_FURTHER = 30, 10  # at most, for one model and for each further one
UNBOUNDED = 10**6  # columns
BUDGETS: tuple[Literal["whole", "short", "least"], ...] = ("whole", "short", "least")


def screen_text(results: Results, design_path: str | None, width: int, plain_lines: int) -> str:
    """The text of the requested results (run, budget, comparison, ...), then of the models.

    The text and the `plain_lines` above it should fit in the allowed number of lines. If they do not, each model is
    shortened to three lines. Then notes are left out; of several models the tables of fits, of which one of times takes
    the place; the models; what a budget says beside its optimum; the parts of a peak and the settings of a spread step;
    the last GPUs of a long list; their times; and last of all the table of laws.
    """
    room = LINES_OF_ONE + LINES_OF_FURTHER * max(0, len(results.analyses) - 1) - plain_lines
    text = ""
    for detail in _details(results):
        blocks = _blocks(results, design_path, width, detail)
        text = "\n\n".join("\n".join(block.lines) for block in blocks)
        if len(text.splitlines()) <= room:
            break
    return text


def screen_blocks(results: Results, design_path: str | None) -> list[Lines]:
    """The blocks of the first screen where the number of lines does not matter: all that it can say."""
    return _blocks(results, design_path, UNBOUNDED, next(_details(results)))


class _Detail(NamedTuple):
    """How much is printed."""

    models: Literal["whole", "short", "none"]
    notes: bool
    gpus: int  # of each list of GPUs
    times: int  # GPUs, of how long a step takes
    remedies: bool = True  # where that is not known
    tables: bool = True  # of several models, where each one fits
    parts: bool = True  # of the peak of the worst rank, and of what is predicted of a run its band
    settings: bool = True  # of a spread step, and what is in the memory that it needs
    laws: bool = True  # each of several laws
    budget: Literal["whole", "short", "least"] = "whole"


def _details(results: Results) -> Iterator[_Detail]:
    """From most to least."""
    lists = [run.gpus for run in results.runs] + [
        analysis.fits or analysis.step_time or () for analysis in results.analyses
    ]
    gpus = max(1, *map(len, lists)) if lists else 1
    whole = _Detail("whole", notes=True, gpus=gpus, times=gpus)
    fewer = range(gpus, 0, -1)
    if len(results.analyses) == 1:
        yield whole
    yield whole._replace(models="short")
    short = whole._replace(models="short", notes=False)
    yield short
    none = short._replace(models="none")
    if len(results.analyses) > 1:
        yield short._replace(tables=False)
        if any(analysis.step_time for analysis in results.analyses):
            yield none._replace(tables=False, parts=False)
        yield from (short._replace(gpus=number, times=number, tables=False) for number in fewer)
    if not any(analysis.rank_classes for analysis in results.analyses):
        yield from (short._replace(gpus=number) for number in fewer)
    yield none
    if results.budget is not None:
        yield none._replace(budget="short")
        yield none._replace(budget="least")
    yield none._replace(parts=False)
    least = none._replace(parts=False, settings=False)
    yield from (least._replace(gpus=number) for number in fewer)
    yield from (least._replace(gpus=number, remedies=False) for number in fewer)
    yield from (least._replace(gpus=1, times=number, remedies=False) for number in fewer)
    without_laws = least._replace(gpus=1, times=1, remedies=False, laws=False)
    yield from (without_laws._replace(budget=said) for said in BUDGETS)


def _blocks(results: Results, design_path: str | None, width: int, detail: _Detail) -> list[Lines]:
    """The blocks in the order of printing, without those of results that were not requested."""
    blocks = [Lines(width, notes=detail.notes) for _ in range(7)]
    ignored, compared, run, budget, published, claim, models = blocks
    if any(analysis.ignored_fields for analysis in results.analyses):
        from counting.report.screen.model import ignored_screen

        ignored_screen(ignored, results.analyses)
    if results.published is not None:
        from counting.report.screen.published import published_screen

        published_screen(published, results.published)
    if results.published_memory is not None:
        from counting.report.screen.published import published_memory_screen

        published_memory_screen(published, results.published_memory)
    if results.published_throughput is not None:
        from counting.report.screen.published import published_throughput_screen

        published_throughput_screen(published, results.published_throughput)
    if results.claim is not None:
        from counting.report.screen.claim import claim_screen

        claim_screen(claim, results.claim)
    if results.comparison is not None:
        from counting.report.screen.comparison import comparison_screen

        comparison_screen(compared, results.comparison, results.analyses)
    if results.runs:
        from counting.report.screen.run import run_screen

        run_screen(run, results.runs, detail.gpus, bands=detail.parts)
    _budget(budget, results, design_path, detail)
    if results.analyses:
        _models(models, results, detail)
    fits = [] if compared.said or budget.said else _fits(results, width, detail, with_runs=bool(run.said))
    return [block for block in (*fits, *blocks) if block.said]


def _fits(results: Results, width: int, detail: _Detail, *, with_runs: bool) -> list[Lines]:
    """The GPUs for each model, and its ranks if the step is spread; with runs, only of a step that is spread."""
    if len(results.analyses) > 1 and not detail.tables:
        return _times(results, width, detail)
    blocks: list[Lines] = []
    catalogue = results.on_catalogue or [()] * len(results.analyses)
    for analysis, on_catalogue in zip(results.analyses, catalogue, strict=True):
        block = Lines(width, notes=detail.notes)
        if analysis.rank_classes:
            from counting.report.screen.ranks import ranks_screen

            reserved = detail.notes or len(results.analyses) == 1
            ranks_screen(
                block,
                analysis,
                on_catalogue,
                detail.gpus,
                times=detail.times,
                remedies=detail.remedies,
                reserved=reserved and detail.settings,
                parts=detail.parts,
                settings=detail.settings,
            )
        elif analysis.fits is not None and not with_runs:
            from counting.report.screen.fits import fits_screen

            fits_screen(block, analysis, analysis.fits, detail.gpus, times=detail.times, remedies=detail.remedies)
        blocks.append(block)
    return blocks


def _times(results: Results, width: int, detail: _Detail) -> list[Lines]:
    """How long a step of each of several models takes, if one was timed."""
    if not any(analysis.step_time for analysis in results.analyses):
        return []
    from counting.report.screen.several import time_columns

    block = Lines(width, notes=detail.notes)
    time_columns(block, results.analyses, detail.times, remedies=detail.remedies)
    return [block]


def _budget(lines: Lines, results: Results, design_path: str | None, detail: _Detail) -> None:
    if results.budget is None:
        return
    from counting.report.screen.budget import budget_screen, design_screen, spent_screen
    from counting.report.screen.laws import apart_screen, laws_screen

    side_by_side, least = results.laws is not None and detail.laws, detail.budget == "least"
    said = "short" if detail.budget == "whole" and side_by_side and not lines.notes else detail.budget
    budget_screen(lines, results.budget, said, in_table=side_by_side)
    if results.laws is not None and detail.laws:
        laws_screen(lines, results.laws)
    else:
        apart_screen(lines, results.budget.apart, more=results.laws is not None, costs=not least)
    if results.beyond is not None:
        from counting.report.screen.beyond import beyond_screen

        beyond_screen(lines, results.beyond, asked_only=least and bool(results.spent))
    if results.design is not None and design_path is not None:
        design_screen(lines, results.design, design_path, experts=not least)
    if results.spent:
        spent_screen(lines, results.spent, results.beyond)


def _models(lines: Lines, results: Results, detail: _Detail) -> None:
    from counting.report.screen.model import conventions_screen, model_screen, short_model_screen

    if detail.budget == "least":
        return
    if detail.models == "none":
        lines.heading(
            "The model is in the details." if len(results.analyses) == 1 else "The models are in the details."
        )
        return
    catalogue = results.on_catalogue or [()] * len(results.analyses)
    for analysis, on_catalogue in zip(results.analyses, catalogue, strict=True):
        if detail.models == "short":
            short_model_screen(
                lines,
                analysis,
                on_catalogue,
                compared=results.comparison is not None,
                ranks_above=detail.tables or len(results.analyses) == 1,
            )
        else:
            model_screen(lines, analysis, on_catalogue)
    conventions_screen(lines, results.analyses)
