"""Formats all results: text for people, plain lines and JSON for programs. Only this package formats numbers."""

from counting.report.document import json_document
from counting.report.results import Results
from counting.report.text import print_results

__all__ = ["Results", "json_document", "print_results"]
