"""Sums of gradients in the tracker, held against torch's own profiler on real tensors."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from counting.measurements import live_bytes
from counting.measurements.live_bytes import LiveBytes
from tests.shrunken import FAMILIES
from torch_models import build_training_model, set_recompute
from torch_models.fields.config import spec_from_fields
from torch_models.spec import Recompute


def gradient_sums(events: Iterator[Any]) -> Counter[tuple[str, str]]:
    """Whether gradients that met were added in place, and in which node, as torch's profiler saw it."""
    sums: Counter[tuple[str, str]] = Counter()
    for event in events:
        parent = event.cpu_parent.name if event.cpu_parent else ""
        if event.name in ("aten::add", "aten::add_") and ("engine" in parent or "AccumulateGrad" in parent):
            sums[event.name, parent.split(": ")[-1].split("::")[-1]] += 1
    return sums


class Watching(LiveBytes):
    """Notes what the tracker decides about each sum of gradients."""

    def __init__(self) -> None:
        super().__init__([])
        self.sums: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        node = torch._C._current_autograd_node()
        runs_again = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None  # an indexer, in a layer
        in_backward = node is not None and not torch.is_grad_enabled() and not runs_again
        is_sum = function is torch.ops.aten.add.Tensor and in_backward
        if is_sum and isinstance(args[1], torch.Tensor) and args[0].shape == args[1].shape:
            name = "aten::add_" if live_bytes._adds_in_place(*args) else "aten::add"
            self.sums[name, node.name().split("::")[-1]] += 1
        if function is torch.ops.aten.add_.Tensor and node is not None and not torch.is_grad_enabled():
            self.sums["aten::add_", node.name().split("::")[-1]] += 1
        return super().__torch_dispatch__(function, types, args, kwargs)


@pytest.mark.parametrize("recompute", ["none", "full"])
@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())
def test_gradients_are_added_in_place_where_torch_does(fields: dict[str, Any], recompute: Recompute) -> None:
    """Held against torch's own profiler on real tensors, where no mode is watching."""
    spec = spec_from_fields(fields, "shrunken")

    def loss() -> torch.Tensor:
        model = build_training_model(spec, kernels="eager")
        set_recompute(model, recompute)
        token_ids = torch.zeros(1, 24, dtype=torch.long)
        loss: torch.Tensor = model(token_ids, token_ids)
        return loss

    unwatched = loss()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        unwatched.backward()
    watched = loss()
    with Watching() as watcher:
        watched.backward()
    expected = gradient_sums(iter(profiler.events()))
    assert expected
    assert watcher.sums == expected


def test_a_second_backward_adds_to_the_gradients_that_are_there() -> None:
    """As of a second micro-batch: to a parameter's own gradient torch adds in place, without new memory."""
    spec = spec_from_fields(FAMILIES["llama"], "shrunken")
    model = build_training_model(spec, kernels="eager")
    token_ids = torch.zeros(1, 24, dtype=torch.long)

    def loss() -> torch.Tensor:
        loss: torch.Tensor = model(token_ids, token_ids)
        return loss

    loss().backward()
    second = loss()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        second.backward()
    third = loss()
    with Watching() as watcher:
        third.backward()
    expected = gradient_sums(iter(profiler.events()))
    assert expected["aten::add_", "AccumulateGrad"] == len(list(model.parameters()))
    assert watcher.sums == expected
