"""The table of the FLOPs of a forward pass."""

from counting.analysis import Analysis
from counting.report.format import integer, share
from counting.report.model.components import component_table
from counting.report.tables import Table

WINDOWS, CHOSEN = "within windows", "to chosen keys"


def keys_visited(analysis: Analysis) -> list[str]:
    """What keys attention visits where these are not all: those in windows, and those that indexers choose."""
    reduced = [
        CHOSEN if layer.forward_flops_by_component.get("indexer") else WINDOWS
        for layer in analysis.layers
        if layer.attention_core_flops.as_run != layer.attention_core_flops.full_square
    ]
    return [kind for kind in (WINDOWS, CHOSEN) if kind in reduced]


def flop_table(analysis: Analysis) -> Table:
    """FLOPs by component, for each distinct layer and for the model; below, totals by form of attention."""
    table = component_table(f"Forward FLOPs of {_sequences(analysis.setup.micro_batch_size)}", analysis.layers, "model")
    for component, count in analysis.forward_flops_by_component.items():
        row = [layer.forward_flops_by_component.get(component, 0) for layer in analysis.layers]
        if count:
            table.add_row(component, *map(integer, row), integer(count), share(count, analysis.forward_flops))
    table.add_section()
    windowed = analysis.forward_flops_full_attention != analysis.forward_flops

    def add(label: str, per_layer: list[int], count: int, bold: bool = False) -> None:
        numbers = (*map(integer, per_layer), integer(count), share(count, analysis.forward_flops))
        table.add_row(label, *numbers, bold=bold)

    visited = " and ".join(keys_visited(analysis))
    title = f"total, attention {visited}" if windowed else "total, full attention"
    add(title, [layer.forward_flops for layer in analysis.layers], analysis.forward_flops, bold=True)
    causal = [layer.forward_flops_causal for layer in analysis.layers]
    half = f"total, causal {visited}" if windowed else "total, causal half of the square"
    add(half, causal, analysis.forward_flops_causal)
    if windowed:
        full = [layer.forward_flops_full_attention for layer in analysis.layers]
        add("total, full attention", full, analysis.forward_flops_full_attention)
    if analysis.scan_flops:
        scans = [layer.scan_flops for layer in analysis.layers]
        add("in attention: products of scans, by formula", scans, analysis.scan_flops)
    if analysis.elementwise_operations:
        operations = [layer.elementwise_operations for layer in analysis.layers]
        add(
            "not included: elementwise operations of scans and short convolutions",
            operations,
            analysis.elementwise_operations,
        )
    if analysis.mtp_forward_flops:
        blank = [""] * len(analysis.layers)
        flops = analysis.mtp_forward_flops
        table.add_row(
            "not included: multi-token prediction", *blank, integer(flops), share(flops, analysis.forward_flops)
        )
    return table


def _sequences(number: int) -> str:
    return "one sequence" if number == 1 else f"{number:,} sequences"
