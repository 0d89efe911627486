"""The seconds of a step: bound, estimate and band, with a breakdown."""

from fractions import Fraction

from counting.cost.cluster import Cluster
from counting.setup import Setup
from counting.step.time import StepTime
from counting.work import StepWork
from torch_models.layout import Layout


def step_time(
    work: StepWork,
    setup: Setup,
    layout: Layout | None,
    cluster: Cluster,
    *,
    model_flops_per_token: Fraction,
    hardware_flops: int,
) -> StepTime:
    """The time of one step of `work`; `setup` and `layout` are resolved, and None is one device.

    `model_flops_per_token` are by the own convention, `hardware_flops` those of all ranks in a step as executed.
    """
    raise NotImplementedError
