"""The component of a module: its own attribute `component`, or that of the nearest module that contains it."""

from collections.abc import Mapping

from torch import nn

from counting.counts import COMPONENTS, Counts


def component_of(root: nn.Module, name: str) -> str | None:
    """The component of the module `name` within `root`; None if neither it nor a module that contains it has one."""
    module: nn.Module = root
    component = getattr(root, "component", None)
    for part in name.split(".") if name else ():
        module = getattr(module, part)
        component = getattr(module, "component", component)
    return component


def counts_of_modules(root: nn.Module, totals: Mapping[str, int]) -> Counts:
    """Counts by component; `totals` maps a module's name within `root` to its total, including its submodules.

    Pure containers may be missing in `totals`.
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
