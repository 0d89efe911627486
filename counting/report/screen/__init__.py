"""The first screen: the answer to what was asked, in lines of the width that there is."""

from counting.report.results import Results
from counting.report.screen.lines import Lines

LINES_OF_ONE, LINES_OF_FURTHER = 30, 10  # at most so many are printed of one model and of each further one


def screen_text(results: Results, design_path: str | None, width: int, plain_lines: int) -> str:
    """Bill, budget or comparison where one was asked for, then the models; below `plain_lines` lines.

    Where there is no room for all, a model is told in three lines; where that is not enough, the last GPUs of a run
    are left to the details.
    """
    room = LINES_OF_ONE + LINES_OF_FURTHER * max(0, len(results.analyses) - 1) - plain_lines
    gpus = max((len(run.gpus) for run in results.runs), default=0)
    at_length = [(False, gpus)] if len(results.analyses) == 1 else []
    for in_short, most in (*at_length, *((True, most) for most in range(gpus, 0, -1)), (True, 1)):
        blocks = _blocks(results, design_path, width, most_gpus=most, in_short=in_short)
        text = "\n\n".join("\n".join(block.lines) for block in blocks if block.lines)
        if len(text.splitlines()) <= room:
            break
    return text


def _blocks(results: Results, design_path: str | None, width: int, *, most_gpus: int, in_short: bool) -> list[Lines]:
    """In order, empty where nothing of the kind was asked for."""
    fits, compared, run, budget, published, claim, models = blocks = [Lines(width) for _ in range(7)]
    if results.published is not None:
        from counting.report.screen.published import published_screen

        published_screen(published, results.published)
    if results.claim is not None:
        from counting.report.screen.claim import claim_screen

        claim_screen(claim, results.claim)
    if results.comparison is not None:
        from counting.report.screen.comparison import comparison_screen

        comparison_screen(compared, results.comparison, results.analyses)
    if results.runs:
        from counting.report.screen.run import run_screen

        run_screen(run, results.runs, most_gpus)
    _budget(budget, results, design_path)
    if len(results.analyses) == 1 and results.analyses[0].fits and not (run.lines or budget.lines):
        from counting.report.screen.fits import fits_screen

        fits_screen(fits, results.analyses[0], results.analyses[0].fits)
    if results.analyses:
        _models(models, results, in_short=in_short)
    return blocks


def _budget(lines: Lines, results: Results, design_path: str | None) -> None:
    if results.budget is None:
        return
    from counting.report.screen.budget import budget_screen, design_screen, spent_screen

    budget_screen(lines, results.budget)
    if results.design is not None and design_path is not None:
        design_screen(lines, results.design, design_path)
    if results.spent:
        spent_screen(lines, results.spent)


def _models(lines: Lines, results: Results, *, in_short: bool) -> None:
    from counting.report.screen.model import conventions_screen, model_screen, short_model_screen

    catalogue = results.on_catalogue or [()] * len(results.analyses)
    for analysis, on_catalogue in zip(results.analyses, catalogue, strict=True):
        if in_short:
            short_model_screen(lines, analysis, on_catalogue, compared=results.comparison is not None)
        else:
            model_screen(lines, analysis, on_catalogue)
    conventions_screen(lines, results.analyses)
