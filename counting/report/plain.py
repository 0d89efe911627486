"""The plain lines for scripts: no tables, no separators in numbers."""

from counting.analysis import Analysis
from counting.cost.budget import BudgetPlan
from counting.report.format import shifted
from counting.report.results import Results


def plain_text(results: Results) -> str:
    """A block of lines for each model and for the budget; each block names its model if there are several.

    A comparison has none, and replaces those of its models.
    """
    analyses, budget = results.analyses if results.comparison is None else (), results.budget
    blocks = [
        ([f"Model: {analysis.name}"] if len(analyses) > 1 else []) + analysis_lines(analysis) for analysis in analyses
    ]
    if budget is not None:
        blocks.append(budget_lines(budget))
    return "\n\n".join("\n".join(block) for block in blocks)


def analysis_lines(analysis: Analysis) -> list[str]:
    """The lines of one model; FLOPs and memory are those of one forward pass of its main layer."""
    layer = analysis.main_layer
    peak = layer.peak_memory_bytes
    return [
        f"Number of parameters: {analysis.parameters.total}",
        f"Number of TFLOPs: {shifted(layer.forward_flops, 12)}",
        f"Peak memory cost: {'not measured' if peak is None else f'{shifted(peak, 9)} GBs'}",
    ]


def budget_lines(budget: BudgetPlan) -> list[str]:
    """The lines of a budget."""
    return [
        f"best_gpu: {budget.best_gpu}",
        f"training_budget_flops: {float(budget.training_flops):.12g}",
        f"Optimal N: {budget.optimal_parameters}",
        f"Optimal D: {budget.optimal_tokens}",
    ]
