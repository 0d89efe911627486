"""Results as one JSON document."""

from typing import Any

import msgspec

from counting.report.results import Calibrated, Fitted, Results

SCHEMA_VERSION = 2


def json_document(results: Results) -> str:
    """All results as one JSON document; parameters, tokens, FLOPs and bytes are integers.

    A key that was not requested is null, or an empty list.
    """
    document = {
        "schema_version": SCHEMA_VERSION,
        "plan": results.plan,
        "warnings": results.warnings,
        "analyses": results.analyses,
        "runs": results.runs,
        "comparison": results.comparison,
        "budget": _budget(results),
        "fit": None,
        "published": _published(results),
        "claim": results.claim,
    }
    return msgspec.json.encode(document).decode()


def _published(results: Results) -> object:
    """The published figures of the kind that was requested: rows, or of speeds rows with errors and ratios."""
    kinds = (results.published, results.published_memory, results.published_throughput)
    return next((figures for figures in kinds if figures is not None), None)


def calibration_document(calibrated: Calibrated) -> str:
    """Both as one JSON document; what was not asked for is null."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "output": calibrated.output,
        "cluster": calibrated.document,
        "calibration": calibrated.steps,
        "machine": calibrated.machine,
    }
    return msgspec.json.encode(document).decode()


def fit_document(result: Fitted) -> str:
    """The law, its runs with residuals, both approaches and what is doubtful as one JSON document."""
    document = {
        "schema_version": SCHEMA_VERSION,
        "output": result.output,
        "warnings": result.fitted.warnings,
        "fit": result.fitted,
    }
    return msgspec.json.encode(document).decode()


def _budget(results: Results) -> dict[str, Any] | None:
    """The fields of the budget; beside them `laws`, `design`, `models` (it on each), and what is in `_beyond`."""
    if results.budget is None:
        return None
    beside = {
        "laws": msgspec.to_builtins(results.laws),
        "design": msgspec.to_builtins(results.design),
        "models": msgspec.to_builtins(results.spent),
    }
    fields: dict[str, Any] = msgspec.to_builtins(results.budget)
    return fields | beside | _beyond(results)


def _beyond(results: Results) -> dict[str, Any]:
    """What was asked of a budget beyond plain compute; null where it was not."""
    asked = ("data_limited", "inference_aware", "mixture")
    return {name: msgspec.to_builtins(getattr(results.beyond, name, None)) for name in asked}
