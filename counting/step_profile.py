"""What both witnesses say of the memory of one training step: stretch by stretch, for one layer of each kind.

`counting.step_memory` measures a `StepProfile` and `counting.analytic_step_memory` derives it; `counting.training_memory`
extends it to the whole model. Torch-free.
"""

from typing import Literal

import msgspec

from torch_models.spec import Kernels, Recompute


class StepOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a training step over one sequence is run with; the rest is the model's."""

    sequence_length: int
    kernels: Kernels
    recompute: Recompute
    activation_bytes: Literal[2, 4]
    gradients_apart: bool  # each gradient is added to a buffer of its own format as soon as it is there, and let go
    mtp: bool
    loss_chunk: int | None  # tokens whose logits are in memory at a time; None for all


class Stretch(msgspec.Struct, frozen=True, kw_only=True):
    """A part of the step, from one moment to another: bytes beyond those alive at its start.

    `gradients` are those of parameters, which are in `net`.
    """

    peak: int
    net: int
    gradients: int = 0


class LayerProfile(msgspec.Struct, frozen=True, kw_only=True):
    """One distinct decoder layer, of which the model has `count`."""

    kind: str
    count: int
    parameters: int
    largest_parameter: int  # numbers in the largest tensor
    forward: Stretch
    backward: Stretch


class StepProfile(msgspec.Struct, frozen=True, kw_only=True):
    """The step's stretches in order: embedding, layers, head and loss forth and back, layers, embedding.

    `outside_parameters` are all that stand in no decoder layer: embedding, final norm, head, and, where they are
    trained, the multi-token-prediction modules, whose passes are a part of `loss`.
    """

    embedding_forward: Stretch
    layers: tuple[LayerProfile, ...]
    loss: Stretch
    embedding_backward: Stretch
    outside_parameters: int
    largest_outside_parameter: int
    inputs: int  # bytes of token ids, labels and rotary tables, which are there throughout
    buffers: int  # bytes of what no optimiser updates
