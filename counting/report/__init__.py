"""The only place where numbers and units are formatted: text for people, plain lines and JSON for programs."""

from counting.report.document import json_document
from counting.report.results import Results
from counting.report.text import print_results

__all__ = ["Results", "json_document", "print_results"]
