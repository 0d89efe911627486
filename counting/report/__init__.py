"""Formats all results: text for people, plain lines and JSON for programs. Only this package formats numbers."""

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
