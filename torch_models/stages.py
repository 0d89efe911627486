"""The stages of a pipeline: which layers of a model each of them has. Torch-free.

The first stage has the embedding too; the last one final norm, head, loss, and multi-token prediction.
"""

from typing import NamedTuple

import msgspec

from torch_models.layout import Layout
from torch_models.spec import ModelSpec, runs_of


class Stage(NamedTuple):
    """One stage of a pipeline.

    `spec` has its layers; the sizes of embedding and head are in it whether the stage has them or not. Its `mtp_layers`
    are those of the model in the last stage, and none elsewhere.
    """

    number: int  # in the pipeline, from 0
    spec: ModelSpec
    first_layer: int  # the place of its first layer in the model
    is_first: bool
    is_last: bool
    predicts_further: bool = False  # whether the model has multi-token prediction, which is in the last stage


def even_stages(layers: int, stages: int) -> tuple[int, ...]:
    """The layers of each stage, as even as can be: the spare layers go to the first stages."""
    each, spare = divmod(layers, stages)
    return tuple(each + 1 if index < spare else each for index in range(stages))


def stages_of(spec: ModelSpec, layout: Layout) -> tuple[Stage, ...]:
    """The stages of `spec` in order; the layout must be resolved. A layout without pp has one."""
    counts = layout.stage_layers or even_stages(spec.num_layers, layout.stages)
    found: list[Stage] = []
    layers, first = spec.layers, 0
    for index, count in enumerate(counts):
        is_last = index == len(counts) - 1
        of_stage = msgspec.structs.replace(
            spec,
            layer_runs=runs_of(layers[first : first + count]),
            mtp_layers=spec.mtp_layers if is_last else (),
        )
        found.append(Stage(index, of_stage, first, index == 0, is_last, bool(spec.mtp_layers)))
        first += count
    return tuple(found)


def micro_batches_of_round(pp: int, micro_batches: int) -> int:
    """Micro-batches that a looped schedule (interleaved, zb) runs through one stage before it goes to the next.

    A round has `pp` of them, or a few more where they do not come out even.
    """
    return micro_batches // max(micro_batches // pp, 1)
