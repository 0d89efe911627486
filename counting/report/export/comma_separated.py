"""Results as files of comma-separated values: tidy rows, with the columns of `TidyRow`.

One file for each kind of result, named as its key in the JSON document; numbers are written as that document has them.
"""

import csv
import io
from collections.abc import Iterable

import msgspec

from counting.records import TidyRow
from counting.records.walk import tidy_rows
from counting.report.results import Results

# Fields of `Results` -> the file with their rows, where it is not named as the field.
FILE_OF_FIELD = {
    "laws": "budget",
    "spent": "budget",
    "beyond": "budget",
    "design": "budget",
    "published_memory": "published",
    "published_throughput": "published",
}
NO_RESULTS = {"warnings", "plan", "on_catalogue"}
WITNESSES = "witnesses"


def csv_files(results: Results, *, proof: bool = False) -> dict[str, str]:
    """The name of each file -> its text, ready to be written; with `proof`, one with the values of all witnesses."""
    return {f"{name}.csv": csv_text(rows) for name, rows in rows_by_file(results, proof=proof).items()}


def rows_by_file(results: Results, *, proof: bool = False) -> dict[str, list[TidyRow]]:
    """The rows of each file, by its name without the ending; a result that was not asked for has no file."""
    files: dict[str, list[TidyRow]] = {}
    for field in results.__struct_fields__:
        content = getattr(results, field)
        if field not in NO_RESULTS and content:
            found = [content] if isinstance(content, msgspec.Struct) else content
            rows = [row for result in found for row in tidy_rows(result)]
            files.setdefault(FILE_OF_FIELD.get(field, field), []).extend(rows)
    if proof:
        several = len(results.analyses) > 1
        files[WITNESSES] = [
            row._replace(scope=f"{analysis.name} / {row.scope}") if several else row
            for analysis in results.analyses
            for row in analysis.agreement.to_records()
        ]
    return files


def csv_text(rows: Iterable[TidyRow]) -> str:
    """The rows below a line with the names of the columns. A line ends with a newline alone."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(TidyRow._fields)
    writer.writerows(rows)
    return text.getvalue()
