"""Results as text: plain lines for scripts, the first screen for people, then tables if requested."""

from counting.report.plain import plain_text
from counting.report.results import Calibrated, Results
from counting.report.screen import screen_text
from counting.report.tables import output_width


def print_results(results: Results, design_path: str | None, *, details: bool, proof: bool) -> None:
    """Print all results. If there is a comparison, it replaces the output of the single models.

    `design_path` is the file to which a designed model's config was written. `details` adds the tables, `proof` a list
    of every number with the values of all its witnesses.
    """
    analyses = results.analyses if results.comparison is None else ()
    plain = plain_text(analyses, results.budget) if analyses or results.budget is not None else ""
    plain_lines = len(plain.splitlines()) + 1 if plain else 0
    screen = screen_text(results, design_path, output_width(), plain_lines)
    print("\n\n".join(text for text in (plain, screen) if text))
    if details:
        _print_details(results, design_path)
    if proof:
        from counting.report.model.proof import print_proof

        for analysis in results.analyses:
            print_proof(analysis.agreement, analysis.name)


def print_calibration(calibrated: Calibrated) -> None:
    """Print what was calibrated or measured."""
    from counting.report.screen.calibration import calibration_text

    print(calibration_text(calibrated))


def _print_details(results: Results, design_path: str | None) -> None:
    """Print all tables."""
    for index, analysis in enumerate(results.analyses if results.comparison is None else ()):
        from counting.report.model import print_analysis

        print_analysis(analysis, analysis.fits or (results.on_catalogue[index] if results.on_catalogue else ()))
    if results.comparison is not None:
        from counting.report.comparison import print_comparison

        print_comparison(results.comparison)
    for run in results.runs:
        from counting.report.run import print_run

        print_run(run)
    if results.budget is not None:
        from counting.report.budget import print_budget, print_budget_on_model

        print_budget(results.budget)
        for spent in results.spent:
            print_budget_on_model(spent, results.budget)
    if results.design is not None and design_path is not None:
        from counting.report.design import print_design

        print_design(results.design, design_path)
    if results.published is not None:
        from counting.report.published.bills import print_published

        print_published(results.published)
    if results.published_memory is not None:
        from counting.report.published.memory import print_published_memory

        print_published_memory(results.published_memory)
    if results.published_throughput is not None:
        from counting.report.published.throughput import print_published_throughput

        print_published_throughput(results.published_throughput)
    if results.claim is not None:
        from counting.report.claim import print_claim

        print_claim(results.claim)
