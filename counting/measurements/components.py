"""Which component a module's numbers belong to: its own `component`, or that of the nearest module above it."""

from collections.abc import Mapping

from torch import nn

from counting.counts import COMPONENTS, Counts


def component_of(root: nn.Module, name: str) -> str | None:
    """The component of the module `name` within `root`; None where no module on the way down has one."""
    module: nn.Module = root
    component = getattr(root, "component", None)
    for part in name.split(".") if name else ():
        module = getattr(module, part)
        component = getattr(module, "component", component)
    return component


def counts_of_modules(root: nn.Module, totals: Mapping[str, int]) -> Counts:
    """Counts by component, from each module's total (its children's included), keyed by its name within `root`.

    Modules that are only containers may be missing.
    """
    own = dict(totals)
    for name, total in totals.items():
        parent = name
        while parent:
            parent = parent.rpartition(".")[0]
            if parent in own:
                own[parent] -= total
                break
    counts = dict.fromkeys(COMPONENTS, 0)
    for name, count in own.items():
        if not count:
            continue
        component = component_of(root, name)
        assert component in counts, f"{type(root).__name__}.{name} counts {count} and belongs to no component"
        counts[component] += count
    return Counts(**counts)
