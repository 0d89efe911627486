"""Results as text: the only place where numbers and units are formatted.

Plain lines that scripts read come first, tables that people read after them.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import msgspec

from counting.analysis import Analysis, LayerAnalysis
from counting.cost.budget import BudgetPlan
from counting.cost.budget_on_model import BudgetOnModel
from counting.cost.comparison import Comparison
from counting.cost.design import Design
from counting.cost.run import TrainingRun
from counting.cost.scaling_laws import find_law
from counting.counts import LayerMemory
from counting.published.claim import Claim
from counting.published.runs import ExaminedRun
from counting.reconcile import Check
from counting.report.format import facts_table, integer, open_console, print_tables, share, shifted
from counting.report.step_flops import training_table
from counting.report.step_memory import memory_table

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """All that one command found out."""

    analyses: Sequence[Analysis] = ()
    runs: Sequence[TrainingRun] = ()
    comparison: Comparison | None = None
    plan: BudgetPlan | None = None
    spent: Sequence[BudgetOnModel] = ()  # the plan's budget on each of the analysed models
    design: Design | None = None
    published: Sequence[ExaminedRun] | None = None
    claim: Claim | None = None


def json_document(results: Results) -> str:
    """Everything as one JSON document; parameters, tokens, FLOPs and bytes are integers."""
    budget = None
    if results.plan is not None:
        beside = {"design": msgspec.to_builtins(results.design), "models": msgspec.to_builtins(results.spent)}
        budget = msgspec.to_builtins(results.plan) | beside
    document = {
        "schema_version": SCHEMA_VERSION,
        "analyses": results.analyses,
        "runs": results.runs,
        "comparison": results.comparison,
        "budget": budget,
        "published": results.published,
        "claim": results.claim,
    }
    return msgspec.json.encode(document).decode()


def plain_text(analyses: Sequence[Analysis], plan: BudgetPlan | None) -> str:
    """What scripts read, before any table; with several models, each block names its model."""
    blocks = [
        ([f"Model: {analysis.name}"] if len(analyses) > 1 else []) + analysis_lines(analysis) for analysis in analyses
    ]
    if plan is not None:
        blocks.append(budget_lines(plan))
    return "\n\n".join("\n".join(block) for block in blocks)


# --- A model ---------------------------------------------------------------------------------------------------


def analysis_lines(analysis: Analysis) -> list[str]:
    """The plain lines of one model; FLOPs and memory are of its main layer's forward pass."""
    layer = analysis.main_layer
    peak = layer.peak_memory_bytes
    return [
        f"Number of parameters: {analysis.parameters.total}",
        f"Number of TFLOPs: {shifted(layer.forward_flops, 12)}",
        f"Peak memory cost: {'not measured' if peak is None else f'{shifted(peak, 9)} GBs'}",
    ]


def print_analysis(analysis: Analysis) -> None:
    """The tables of one model: parameters, FLOPs, memory, each number's proof, and the conventions."""
    from rich.markup import escape

    conventions, total = analysis.conventions, sum(layer.count for layer in analysis.layers)
    console = open_console()
    main = analysis.main_layer
    console.print(
        f"\n[bold]{escape(analysis.name)}[/bold] ({analysis.model_type}), {total} layers; the plain lines are of one "
        f"{main.kind} layer ({main.count} of {total}), batch {conventions.batch_size}, sequence length "
        f"{conventions.sequence_length:,} (from {conventions.sequence_length_source})"
        + (f", {conventions.kernels} kernels." if conventions.kernels else ".")
        + (" Measured, no formula." if analysis.proof == "measured, no formula" else "")
    )
    print_tables(
        _parameter_table(analysis),
        _flop_table(analysis),
        *([_memory_table(analysis)] if main.peak_memory_parts else []),
        *([training_table(analysis.training)] if analysis.training else []),
        *([memory_table(analysis.memory)] if analysis.memory else []),
        _agreement_table(analysis),
    )
    console.print()
    for note in conventions.notes:
        console.print(f"• {note}", style="dim")
    if analysis.defaulted_fields:
        console.print(
            f"• Not in the config, so the family's default: {', '.join(analysis.defaulted_fields)}.", style="dim"
        )


def _parameter_table(analysis: Analysis) -> "Table":
    parameters = analysis.parameters
    table = _component_table("Parameters", analysis.layers, "model")
    for component, count in parameters.by_component.items():
        row = [layer.parameters_by_component.get(component, 0) for layer in analysis.layers]
        table.add_row(component, *map(integer, row), integer(count), share(count, parameters.total))
    table.add_section()
    per_layer = [integer(layer.parameters) for layer in analysis.layers]
    table.add_row(
        "total", *per_layer, integer(parameters.total), share(parameters.total, parameters.total), style="bold"
    )
    blank = [""] * len(analysis.layers)

    def add(label: str, count: int) -> None:
        table.add_row(label, *blank, integer(count), share(count, parameters.total))

    add("active for one token", parameters.active)
    add("… without the embedding", parameters.active_without_embedding)
    add("… without embedding and head", parameters.active_without_vocabulary)
    if parameters.mtp:
        add("beside it: multi-token prediction", parameters.mtp)
    if parameters.router_correction_bias:
        add("beside it: router correction biases", parameters.router_correction_bias)
    if parameters.mtp_router_correction_bias:
        add("… of multi-token prediction", parameters.mtp_router_correction_bias)
    return table


def _flop_table(analysis: Analysis) -> "Table":
    table = _component_table("Forward FLOPs of one sequence", analysis.layers, "model")
    for component, count in analysis.forward_flops_by_component.items():
        row = [layer.forward_flops_by_component.get(component, 0) for layer in analysis.layers]
        if count:
            table.add_row(component, *map(integer, row), integer(count), share(count, analysis.forward_flops))
    table.add_section()
    windowed = analysis.forward_flops_full_attention != analysis.forward_flops

    def add(label: str, per_layer: list[int], count: int, style: str | None = None) -> None:
        numbers = (*map(integer, per_layer), integer(count), share(count, analysis.forward_flops))
        table.add_row(label, *numbers, style=style)

    title = "total, attention within windows" if windowed else "total, full attention"
    add(title, [layer.forward_flops for layer in analysis.layers], analysis.forward_flops, "bold")
    causal = [layer.forward_flops_causal for layer in analysis.layers]
    half = "total, causal within windows" if windowed else "total, causal half of the square"
    add(half, causal, analysis.forward_flops_causal)
    if windowed:
        full = [layer.forward_flops_full_attention for layer in analysis.layers]
        add("total, full attention", full, analysis.forward_flops_full_attention)
    if analysis.mtp_forward_flops:
        blank = [""] * len(analysis.layers)
        flops = analysis.mtp_forward_flops
        table.add_row("beside it: multi-token prediction", *blank, integer(flops), share(flops, analysis.forward_flops))
    return table


def _memory_table(analysis: Analysis) -> "Table":
    layers = [layer for layer in analysis.layers if layer.peak_memory_parts]
    table = _component_table("Peak memory of one layer's forward pass, bytes", layers, None)
    for part in LayerMemory.__struct_fields__:
        row = [getattr(layer.peak_memory_parts, part) for layer in layers]
        table.add_row({"saved": "saved activations"}.get(part, part), *map(integer, row))
    table.add_section()
    peaks = [layer.peak_memory_bytes or 0 for layer in layers]
    table.add_row("peak", *map(integer, peaks), style="bold")
    table.add_row("peak in GB", *(f"{shifted(peak, 9, places=3)}" for peak in peaks))
    table.add_row("first pass, without gradients", *(integer(x.peak_memory_no_grad_bytes or 0) for x in layers))
    return table


def _agreement_table(analysis: Analysis) -> "Table":
    from rich.table import Table

    agreement = analysis.agreement
    checks = agreement.checks or agreement.trace_checks
    witnesses = ("measured", "formula") if agreement.checks else ("traced", "dispatched")
    title = f"{len(checks)} numbers, each {' = '.join(witnesses)}"
    table = Table(title=title, title_justify="left", box=None, header_style="dim")
    for heading in ("scope", "quantity", "component"):
        table.add_column(heading, no_wrap=True)
    for heading in (witnesses[0], "", witnesses[1]):
        table.add_column(heading, justify="right", no_wrap=True)
    for check in checks:
        pair = (check.measured, check.analytic) if isinstance(check, Check) else (check.traced, check.dispatched)
        numbers = (integer(pair[0]), "=" if check.ok else "≠", integer(pair[1]))
        table.add_row(check.scope, check.quantity, check.component, *numbers, style="dim")
    return table


def _component_table(title: str, layers: Iterable[LayerAnalysis], whole: str | None) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left", min_width=40)
    table.add_column("component", no_wrap=True)
    for layer in layers:
        table.add_column(f"{layer.kind} layer × {layer.count}", justify="right", no_wrap=True)
    if whole:
        table.add_column(whole, justify="right", no_wrap=True)
        table.add_column("share", justify="right", no_wrap=True)
    return table


# --- A budget --------------------------------------------------------------------------------------------------


def budget_lines(plan: BudgetPlan) -> list[str]:
    """The plain lines of a budget."""
    return [
        f"best_gpu: {plan.best_gpu}",
        f"training_budget_flops: {float(plan.training_flops):.12g}",
        f"Optimal N: {plan.optimal_parameters}",
        f"Optimal D: {plan.optimal_tokens}",
    ]


def print_budget(plan: BudgetPlan) -> None:
    """The tables of a budget: what each GPU would buy, and what the best one is spent on."""
    from rich.table import Table

    console = open_console()
    table = Table(title=f"What ${plan.budget_usd:,.2f} buys at {plan.mfu:.3g} of the dense peak", title_justify="left")
    table.add_column("GPU", no_wrap=True)
    for heading in ("$/hour", "peak TFLOP/s", "dtype", "GPU-hours", "FLOPs bought"):
        table.add_column(heading, justify="right", no_wrap=True)
    for option in plan.options:
        best = option.gpu == plan.best_gpu
        table.add_row(
            f"{option.gpu} (best)" if best else option.gpu,
            f"{option.price_usd_per_hour:,.2f}",
            f"{option.peak_dense_tflop_per_s:,g}",
            option.training_dtype,
            f"{option.gpu_hours:,.0f}",
            f"{float(option.training_flops):.4g}",
            style="bold" if best else None,
        )
    law = find_law(plan.scaling_law)
    facts = [
        ("Scaling law", f"{law.name}: {law.citation}"),
        ("Model", f"{plan.optimal_parameters:,} parameters ({plan.optimal_parameters / 1e9:.4g} billion)"),
        ("Tokens", f"{plan.optimal_tokens:,} ({plan.optimal_tokens / 1e9:.4g} billion)"),
        ("Tokens per parameter", f"{plan.tokens_per_parameter:.2f}"),
        ("GPU-hours", f"{plan.gpu_hours:,.0f} on {plan.best_gpu}"),
        ("Predicted loss", f"{plan.predicted_loss:.5f} nats per token"),
    ]
    print_tables(table, facts_table("The compute-optimal model, C = 6 N D", facts))
    console.print()
    if plan.extrapolated:
        console.print(
            "• The law is extrapolated: it was fitted to models of "
            f"{law.fitted_parameters[0] / 1e6:g} million to {law.fitted_parameters[1] / 1e9:g} billion parameters on "
            f"{law.fitted_tokens[0] / 1e9:g} to {law.fitted_tokens[1] / 1e9:g} billion tokens.",
            style="dim",
        )


def print_design(design: Design, path: str) -> None:
    """The designed model, the rules that shaped it, and the tokens that the budget really pays for."""
    from rich.markup import escape

    console = open_console()
    config = design.config
    facts = [
        ("Layers × width", f"{config['num_hidden_layers']} × {config['hidden_size']}"),
        ("Heads", f"{config['num_attention_heads']} queries on {config['num_key_value_heads']} keys and values"),
        ("SwiGLU width", f"{config['intermediate_size']}"),
        ("Parameters, measured", f"{design.parameters:,} ({design.relative_error:+.3%} from N)"),
        (
            "Training FLOPs per token",
            f"{design.training_flops_per_token:,} (3 × the measured forward pass at sequence length "
            f"{config['max_position_embeddings']}, full attention, nothing recomputed)",
        ),
        ("Tokens", f"{design.tokens:,} ({design.tokens_per_parameter:.2f} per parameter)"),
        ("Training FLOPs", f"{float(design.training_flops):.6g}, all that the budget pays for"),
        ("Predicted loss", f"{design.predicted_loss:.5f} nats per token ({design.scaling_law})"),
    ]
    print_tables(facts_table(f"A model designed for the budget, written to {escape(path)}", facts))
    console.print()
    for rule in design.rules:
        console.print(f"• {rule}", style="dim")
