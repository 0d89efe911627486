"""Formats all results: text for people, plain lines and JSON for programs. Only this package formats numbers.

`screen/` (the first screens), `model/`, `details/`, `published/` and `fit/` (tables as data), `page/` (HTML), `export/`
(Markdown, files of rows), `figures/` (pictures).
"""

from counting.report.document import calibration_document, fit_document, json_document
from counting.report.results import Calibrated, Fitted, Results
from counting.report.text import print_calibration, print_fit, print_results

__all__ = [
    "Calibrated",
    "Fitted",
    "Results",
    "calibration_document",
    "fit_document",
    "json_document",
    "print_calibration",
    "print_fit",
    "print_results",
]
