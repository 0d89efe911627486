"""Results as text: plain lines for scripts, the first screen for people, then tables if requested."""

from counting.report.plain import plain_text
from counting.report.results import Calibrated, Fitted, Results
from counting.report.screen import screen_text
from counting.report.width import output_width


def print_results(results: Results, design_path: str | None, *, details: bool, proof: bool) -> None:
    """Print all results. If there is a comparison, it replaces the output of the single models.

    `design_path` is the file to which a designed model's config was written. `details` adds the tables, `proof` a list
    of every number with the values of all its witnesses.
    """
    plain = plain_text(results)
    plain_lines = len(plain.splitlines()) + 1 if plain else 0
    screen = screen_text(results, design_path, output_width(), plain_lines)
    print("\n\n".join(text for text in (plain, screen) if text))
    if details:
        from counting.report.details import details as results_in_parts
        from counting.report.printing import print_parts

        print_parts(results_in_parts(results, design_path))
    if proof:
        from counting.report.model.proof import print_proof

        for analysis in results.analyses:
            print_proof(analysis.agreement, analysis.name)


def print_calibration(calibrated: Calibrated) -> None:
    """Print what was calibrated or measured."""
    from counting.report.screen.calibration import calibration_text

    print(calibration_text(calibrated))


def print_fit(result: Fitted) -> None:
    """Print a law that was fitted."""
    from counting.report.fit.screen import fit_text

    print(fit_text(result, output_width()))
