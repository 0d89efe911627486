"""The rules of layouts by Megatron-LM's rules of what is held: what there is a formula for. Torch-free."""

from collections.abc import Sequence
from typing import NoReturn

from counting.setup import Setup
from torch_models.errors import ArgumentError
from torch_models.layout import Layout
from torch_models.spec import GatedMLPSpec, GroupedQueryAttentionSpec, LayerSpec, MixtureOfExpertsSpec

MEGATRON_SCHEDULES = ("1f1b", "interleaved")
MEGATRON_PRECISIONS = ("mixed", "mixed-fp32-gradients")  # both are its recipe: it accumulates gradients in fp32
MEGATRON_OPTIMIZERS = ("adamw", "adamw-foreach")
MEGATRON_RECOMPUTE = ("none", "selective", "full")


def check_megatron(layout: Layout, layers: Sequence[LayerSpec], setup: Setup) -> None:
    """Raise `ArgumentError` if there is no formula of what Megatron-LM holds; `setup` is resolved."""
    if not all(isinstance(layer.feed_forward, GatedMLPSpec) for layer in layers):
        experts = any(isinstance(layer.feed_forward, MixtureOfExpertsSpec) for layer in layers)
        kept = "experts, whose rows Megatron-LM keeps in ways of its own"
        what = kept if experts else "a feed-forward without a gate"
        _refuse("framework", layout.framework, f"has no formula for {what}: give torch")
    if any(isinstance(layer.attention, GroupedQueryAttentionSpec) and layer.attention.value_norm for layer in layers):
        _refuse("framework", layout.framework, "has no formula for a norm of values: give torch")
    for field, value, known in (
        ("precision", setup.precision, MEGATRON_PRECISIONS),
        ("optimizer", setup.optimizer, MEGATRON_OPTIMIZERS),
        ("recompute", setup.recompute, MEGATRON_RECOMPUTE),
        ("kernels", setup.kernels, ("fused",)),
    ):
        if value not in known:
            _refuse(field, value, f"has no formula by Megatron-LM's rules: give {' or '.join(known)}")
    if setup.clip_gradients:
        rule = "changes nothing that Megatron-LM holds when backward begins, which is all that is counted: leave it out"
        _refuse("clip_gradients", True, rule)
    if layout.zero != 1:
        _refuse("zero", layout.zero, "must be 1 by Megatron-LM's rules, whose optimiser alone is divided: leave it out")
    if layout.grouping != "torchtitan":
        _refuse("grouping", layout.grouping, "is of torch's fully_shard, which Megatron-LM does not use: leave it out")
    if layout.pp > 1 and layout.schedule not in MEGATRON_SCHEDULES:
        rule = f"is not one of Megatron-LM's schedules: give {' or '.join(MEGATRON_SCHEDULES)}"
        _refuse("schedule", layout.schedule, rule)


def check_rounds(layout: Layout, setup: Setup) -> None:
    """Raise `ArgumentError` for micro-batches that its interleaved schedule does not take; all is resolved."""
    assert setup.micro_batches is not None, "a resolved setup"
    if layout.schedule == "interleaved" and (rest := setup.micro_batches % layout.pp):
        fewer, more = setup.micro_batches - rest, setup.micro_batches - rest + layout.pp
        numbers = f"{fewer} or {more}" if fewer else f"{more}"
        rule = f"Megatron-LM's interleaved schedule needs a multiple of pp ({layout.pp}): give {numbers}"
        _refuse("micro_batches", setup.micro_batches, rule)


def _refuse(field: str, value: object, rule: str) -> NoReturn:
    raise ArgumentError(field, value, rule)
