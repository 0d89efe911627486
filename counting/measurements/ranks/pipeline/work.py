"""The work of the ranks of a pipeline."""

from collections.abc import Sequence

from counting.setup import Setup
from counting.work import StepWork
from torch_models.layout import Layout
from torch_models.stages import Stage


def work_of_pipeline(stages: Sequence[Stage], setup: Setup, layout: Layout) -> StepWork:
    """Placeholder of the owner of pipelines."""
    raise NotImplementedError
