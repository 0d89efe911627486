"""Results as text: first the plain lines that scripts read, then the tables that people read."""

from counting.report.plain import plain_text
from counting.report.results import Results


def print_results(results: Results, design_path: str | None) -> None:
    """Print everything; a comparison stands for the models that it compares.

    `design_path` is where a designed model's config was written.
    """
    analyses = results.analyses if results.comparison is None else ()
    if analyses or results.budget is not None:
        print(plain_text(analyses, results.budget))
    for analysis in analyses:
        from counting.report.model import print_analysis

        print_analysis(analysis)
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
        from counting.report.published import print_published

        print_published(results.published)
    if results.claim is not None:
        from counting.report.claim import print_claim

        print_claim(results.claim)
