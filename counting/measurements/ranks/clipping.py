"""Gradient clipping on a rank: the bytes of its norms, and the collectives that sum them.

What users call is run on gradients like those of the whole model: those of a layer of the shallow model, as often as
the deep one has such a layer.
"""

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from counting.measurements.allocations.steps import Clip
from counting.measurements.optimizer import MASTERS
from counting.measurements.ranks.collectives import CollectiveCounter, axes_of
from counting.measurements.ranks.live_bytes import RankBytes
from counting.measurements.ranks.optimizer import stored_precision
from counting.measurements.ranks.stand_ins import like, local
from counting.ranks.profile import RankStretch
from counting.setup import Setup
from counting.step.profile import Stretch
from torch_models.layout import Layout
from torch_models.parallel.clipping import scale_to_norm
from torch_models.parallel.mesh import Meshes

if TYPE_CHECKING:
    from counting.measurements.work.recorder import Recorder

MAX_NORM = 1.0  # nothing depends on it


def clipping_on_rank(
    groups: Sequence[tuple[Sequence[Tensor], int]],
    copied: Sequence[Tensor],
    setup: Setup,
    layout: Layout,
    meshes: Meshes,
    recorder: "Recorder | None" = None,
) -> RankStretch:
    """Clip gradients like those of the parameters of this rank, of which each group occurs a number of times.

    Of those in `copied` another stage counts the norm. A `recorder` has the ops as a stretch afterwards. Call it inside
    `measuring`.
    """
    dtype = MASTERS if stored_precision(setup, layout).gradients_apart else None
    parameters = [
        parameter
        for of_group, times in groups
        for parameter in of_group
        if parameter.requires_grad
        for _ in range(times)
    ]
    gradients = [torch.zeros_like(local(parameter), dtype=dtype) for parameter in parameters]
    clip = clip_parts(meshes, copied)
    collectives = CollectiveCounter(axes_of(meshes))
    collectives.phase = "optimizer"

    def observe(*op: object) -> None:
        collectives(*op)  # type: ignore[arg-type]
        if recorder is not None:
            recorder(*op)  # type: ignore[arg-type]

    with (
        RankBytes(gradients, observe, collectives.of_tensors) as tracker,
        contextlib.nullcontext() if recorder is None else recorder.of(tracker),
    ):
        before = tracker.live
        tracker.watch()
        clip(parameters, gradients)
        if recorder is not None:
            recorder.cut()
    return RankStretch(memory=Stretch(peak=tracker.peak - before, net=0), traffic=collectives.take())


def clip_parts(meshes: Meshes, copied: Sequence[Tensor]) -> Clip:
    """A function that clips gradients, which are the parts of a rank, each of the parameter in the same place.

    Of the parameters in `copied` another stage counts the norm.
    """
    apart = {id(parameter) for parameter in copied}

    def clip(parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        counted, copies = list[Tensor](), list[Tensor]()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            of_kind = copies if id(parameter) in apart else counted
            divided = like(parameter, gradient)
            leaf = divided.detach()
            leaf.grad = divided
            of_kind.append(leaf)
        scale_to_norm(counted, copies, meshes.pp, MAX_NORM)

    return clip
