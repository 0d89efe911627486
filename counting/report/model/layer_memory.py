"""The table of the memory of one layer's forward pass."""

from counting.analysis import Analysis
from counting.counts import LayerMemory
from counting.report.format import integer, shifted
from counting.report.model.components import component_table
from counting.report.tables import Table


def layer_memory_table(analysis: Analysis) -> Table:
    """The bytes that are allocated at the peak, for each distinct layer that was measured."""
    layers = [layer for layer in analysis.layers if layer.peak_memory_parts]
    table = component_table("Peak memory of one layer's forward pass, bytes", layers, None)
    for part in LayerMemory.__struct_fields__:
        row = [getattr(layer.peak_memory_parts, part) for layer in layers]
        if any(row):
            table.add_row({"saved": "saved activations"}.get(part, part), *map(integer, row))
    table.add_section()
    peaks = [layer.peak_memory_bytes or 0 for layer in layers]
    table.add_row("peak", *map(integer, peaks), bold=True)
    table.add_row("peak in GB", *(f"{shifted(peak, 9, places=3)}" for peak in peaks))
    table.add_row("first pass, without gradients", *(integer(x.peak_memory_no_grad_bytes or 0) for x in layers))
    return table
