"""All tables and notes of the results, in their order; in this folder those of runs, budgets and a claim."""

from collections.abc import Iterator

from counting.report.results import Results
from counting.report.tables import Part


def details(results: Results, design_path: str | None) -> Iterator[Part]:
    """The parts of all results. If there is a comparison, it replaces those of the single models.

    `design_path` is the file to which a designed model's config was written.
    """
    for index, analysis in enumerate(results.analyses if results.comparison is None else ()):
        from counting.report.model import analysis_parts

        on_catalogue = results.on_catalogue[index] if results.on_catalogue else ()
        yield from analysis_parts(analysis, analysis.fits or on_catalogue)
    if results.comparison is not None:
        from counting.report.details.comparison import comparison_parts

        yield from comparison_parts(results.comparison)
    for run in results.runs:
        from counting.report.details.run import run_parts

        yield from run_parts(run)
    if results.budget is not None:
        from counting.report.details.budget import budget_on_model_parts, budget_parts

        yield from budget_parts(results.budget)
        if results.laws is not None:
            from counting.report.details.laws import side_by_side_parts

            yield from side_by_side_parts(results.laws)
        if results.beyond is not None:
            from counting.report.details.beyond import beyond_parts

            yield from beyond_parts(results.beyond)
        for spent in results.spent:
            yield from budget_on_model_parts(spent, results.budget)
    if results.design is not None and design_path is not None:
        from counting.report.details.design import design_parts

        yield from design_parts(results.design, design_path)
    yield from _published(results)
    if results.claim is not None:
        from counting.report.details.claim import claim_parts

        yield from claim_parts(results.claim)


def _published(results: Results) -> Iterator[Part]:
    if results.published is not None:
        from counting.report.published.bills import published_parts

        yield from published_parts(results.published)
    if results.published_memory is not None:
        from counting.report.published.memory import published_memory_parts

        yield from published_memory_parts(results.published_memory)
    if results.published_throughput is not None:
        from counting.report.published.throughput import published_throughput_parts

        yield from published_throughput_parts(results.published_throughput)
