"""A step on real tensors in a process group of gloo, measured by the same functions as on the meta device."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from counting.measurements.meta_device import measuring
from counting.measurements.ranks.rank import profile_of_rank
from counting.measurements.ranks.stand_ins import replaced, without_caches_of_dtensor
from counting.ranks.profile import RankProfile
from counting.ranks.shallow import Shallow
from counting.setup import Setup
from tests.counting.measurements.ranks.pipeline.pipeline_runs import WholeRun, run_step
from torch_models.layout import Layout
from torch_models.modules.moe import Router
from torch_models.spec import ModelSpec


def profile_of_real_rank(model: Shallow, setup: Setup, layout: Layout) -> RankProfile:
    """What the calling rank of the group holds and sends. It runs in a world of `tests.worlds`."""
    with balanced_routing(), without_caches_of_dtensor(), measuring(), _Settled():
        return profile_of_rank(model, setup, layout, torch.device("cpu"))


def run_of_real_rank(spec: ModelSpec, setup: Setup, layout: Layout) -> WholeRun:
    """A step of the calling rank, which has stages of a pipeline. It runs in a world of `tests.worlds`.

    It is the second step: before the first one, stages vote on whether they know the shapes of their inputs.
    """
    with balanced_routing(), without_caches_of_dtensor(), measuring(), _Settled():
        return run_step(spec, setup, layout, torch.device("cpu"), steps=2)


@contextlib.contextmanager
def balanced_routing() -> Iterator[None]:
    """Context in which the experts take turns, so that each of them gets equally many rows."""
    choose = Router._choose

    def in_turn(router: Router, scores_TE: Tensor, correction_E: Tensor | None) -> Tensor:
        experts_TK = choose(router, scores_TE, correction_E)
        turns = torch.arange(experts_TK.numel(), device=experts_TK.device).remainder_(router.spec.num_experts)
        return experts_TK.copy_(turns.view_as(experts_TK))

    with replaced(Router, "_choose", in_turn):
        yield


class _Settled(TorchDispatchMode):
    """A collective returns when gloo's threads have let go of its tensors too, which they do a moment later.

    Nothing shows when they have: a thread refers to the work, and the work to the tensors. So this waits.
    """

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        # A message is complete when the other rank has received it, for which this one may have to run on.
        is_message = function in (torch.ops.c10d.send.default, torch.ops.c10d.recv_.default)
        if function.namespace == "c10d" and not is_message:
            for leaf in tree_leaves(out):
                if isinstance(leaf, torch.ScriptObject):
                    dist.Work.unbox(leaf).wait()
        if function.namespace in ("c10d", "_c10d_functional") and not is_message:
            time.sleep(0.005)
        return out


def differences(real: Any, fake: Any, path: str = "") -> list[str]:
    """Where two structures differ, one line for each value."""
    fields = getattr(real, "__struct_fields__", None)
    if fields is not None and type(real) is type(fake):
        return [line for f in fields for line in differences(getattr(real, f), getattr(fake, f), f"{path}.{f}")]
    if isinstance(real, dict) and isinstance(fake, dict):
        keys = sorted(set(real) | set(fake))
        return [line for key in keys for line in differences(real.get(key), fake.get(key), f"{path}[{key}]")]
    if isinstance(real, tuple) and isinstance(fake, tuple) and len(real) == len(fake):
        pairs = enumerate(zip(real, fake, strict=True))
        return [line for index, (r, f) in pairs for line in differences(r, f, f"{path}[{index}]")]
    return [] if real == fake else [f"{path}: real {real}, fake {fake}"]
