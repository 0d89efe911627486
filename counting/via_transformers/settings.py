"""Which settings of a step a model through transformers takes, and which are refused by name."""

from counting.setup import Setup
from torch_models.errors import ArgumentError

# Settings of a step with the value that changes nothing: any other needs a step that can be measured.
OF_A_STEP = {"recompute": "none", "loss_chunk": None, "clip_gradients": False, "zero_gradients": "none"}


def check_settings(setup: Setup, family: str) -> None:
    """Raise `ArgumentError` for a setting that no model through transformers takes."""
    if setup.kernels != "fused":
        rule = f"{family} goes through transformers, and is measured with the kernels that its code runs: leave it out"
        raise ArgumentError("kernels", setup.kernels, rule)
    if setup.expandable_segments:
        rule = f"{family} goes through transformers, and its allocations are not replayed: leave it out"
        raise ArgumentError("expandable_segments", setup.expandable_segments, rule)


def check_step_is_measured(setup: Setup, family: str, no_step: str) -> None:
    """Raise `ArgumentError` for a setting of a step, where `no_step` says why none is measured."""
    for field, plain in OF_A_STEP.items():
        if getattr(setup, field) != plain:
            rule = f"no training step of {family} is measured through transformers: {no_step}"
            raise ArgumentError(field, getattr(setup, field), rule)
