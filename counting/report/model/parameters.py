"""The table of a model's parameters."""

from counting.analysis import Analysis
from counting.report.format import integer, share
from counting.report.model.components import component_table
from counting.report.tables import Table


def parameter_table(analysis: Analysis) -> Table:
    """Parameters by component, for each distinct layer and for the model; below, active and not included ones."""
    parameters = analysis.parameters
    table = component_table("Parameters", analysis.layers, "model")
    for component, count in parameters.by_component.items():
        row = [layer.parameters_by_component.get(component, 0) for layer in analysis.layers]
        if count:
            table.add_row(component, *map(integer, row), integer(count), share(count, parameters.total))
    table.add_section()
    per_layer = [integer(layer.parameters) for layer in analysis.layers]
    table.add_row("total", *per_layer, integer(parameters.total), share(parameters.total, parameters.total), bold=True)
    blank = [""] * len(analysis.layers)

    def add(label: str, count: int) -> None:
        table.add_row(label, *blank, integer(count), share(count, parameters.total))

    add("active for one token", parameters.active)
    add("… without the embedding", parameters.active_without_embedding)
    add("… without embedding and head", parameters.active_without_vocabulary)
    if parameters.mtp:
        add("not included: multi-token prediction", parameters.mtp)
    if parameters.router_correction_bias:
        add("not included: router correction biases", parameters.router_correction_bias)
    if parameters.mtp_router_correction_bias:
        add("… of multi-token prediction", parameters.mtp_router_correction_bias)
    return table
