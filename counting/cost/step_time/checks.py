"""Whether a step can be timed on a cluster: its rates and the links that a layout needs are known. Takes no time."""

from counting.cost.cluster import Cluster
from counting.cost.step_time.collectives import check_links
from counting.cost.step_time.machine import machine_of
from counting.setup import Setup
from torch_models.errors import UserError
from torch_models.layout import Layout


def check_cluster(cluster: Cluster, setup: Setup, layout: Layout | None) -> None:
    """Raise `UserError` for what is not known of `cluster` and needed; `layout` is resolved, and None is one device."""
    ranks = 1 if layout is None else layout.ranks
    machine = machine_of(cluster, "estimate", ranks=ranks, attention_kernel=cluster.attention_kernel)
    in_fp8 = setup.precision_recipe.multiplies_in_fp8 if cluster.products_in_fp8 is None else cluster.products_in_fp8
    if in_fp8 and "fp8" not in machine.products:
        raise UserError(f"{machine.gpu}: no rate of products in FP8 is known: give another precision, or `rates.fp8`")
    if layout is not None:
        check_links(layout, machine)
