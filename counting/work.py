"""What a step does, op by op, as the measurements saw it: what a model of time takes. Torch-free.

`counting.measurements` fills in a `StepWork`; `counting.cost.step_time` says how long it takes on a cluster. Ops that
are called with equal sizes in one stretch are one `Op` with several calls. All numbers are those of one rank.
"""

from typing import Literal

import msgspec

from counting.ranks.pipeline import PassKind
from counting.ranks.profile import Traffics

# A product is one matrix product, or a batch of them; a grouped product has one for each expert, with rows of its own.
# `memory` is every op that multiplies no matrices and is no view: elementwise, norms, reductions, gathers, copies.
OpKind = Literal["product", "grouped_product", "attention", "memory"]

# How RMSNorm runs: as one kernel, or, in torch before 2.9, op by op in fp32 unless it is compiled.
Norms = Literal["fused", "op_by_op"]
# How queries and keys are rotated: with cosines and sines, or as complex numbers of two fp32, of which torch's compiler
# generates no code.
Rotation = Literal["real", "complex"]
# Whether query heads of a group read one head of keys and values, or each a copy of its own.
KeyValueHeads = Literal["shared", "repeated"]


class LayerStyle(msgspec.Struct, frozen=True, kw_only=True):
    """How the software of a run writes what this project's modules may write otherwise: equal numbers by other ops."""

    norms: Norms = "fused"
    rotation: Rotation = "real"
    key_value_heads: KeyValueHeads = "shared"


OWN_STYLE = LayerStyle()  # that of the modules


class Op(msgspec.Struct, frozen=True, kw_only=True):
    """One op, or several equal ones. FLOPs and bytes are of one call.

    `flops` are counted as everywhere here, with attention's full square; `computed_flops` leave out the half that
    causality forbids, which no fused kernel computes. Bytes are those of the distinct tensors that the op reads and
    writes, each once, not of what a kernel reads again. `shape` is

    - of a product (batch, rows, summed, columns): `batch` times (rows, summed) x (summed, columns);
    - of a grouped product (experts, rows, summed, columns), `rows` of all experts together; the gradient of the weights
      sums over the rows, so that its `summed` is the number of all rows;
    - of attention (sequences, query heads, queries, keys, head size of queries and keys, that of values);
    - else empty.
    """

    kind: OpKind
    name: str  # torch's, without namespace: "mm", "_scaled_dot_product_flash_attention_backward"
    calls: int = 1
    flops: int = 0
    computed_flops: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    dtype: str = "bfloat16"  # of what is multiplied
    shape: tuple[int, ...] = ()
    backward: bool = False  # of attention: the kernel of the backward pass


class StretchWork(msgspec.Struct, frozen=True, kw_only=True):
    """What runs between two moments: ops on the device, and the collectives that are called there.

    `fused_ops` are the ops as compiled code runs them, in layers and outside, whatever the setup says: of equal FLOPs,
    and with no more bytes. The bound of a step takes them. None: they are `ops`.
    """

    ops: tuple[Op, ...] = ()
    fused_ops: tuple[Op, ...] | None = None
    traffic: Traffics = {}


class PassWork(msgspec.Struct, frozen=True, kw_only=True):
    """One pass of one micro-batch through one stage; `layers` are those of the shallow model, in the layers' order.

    Ascending passes: `before` is the embedding, `after` final norm, head and loss. Descending ones: `before` is loss,
    head and final norm, `after` the embedding. Without a pipeline, final norm, head and loss run forward and backward
    in `before` of the backward pass, and `after` of the forward pass is empty.
    """

    before: StretchWork = StretchWork()
    layers: tuple[StretchWork, ...] = ()
    after: StretchWork = StretchWork()
    ascending: bool = True


class StageWork(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a rank; without a pipeline the whole model is one stage.

    `runs` are the layers of the stage in order: the index of a layer in the passes' `layers`, and the number of equal
    layers in a row. `message_bytes` are those of one micro-batch that the stage sends on in a forward pass, and of the
    gradient that it sends back: (input, output), 0 where it sends none.
    """

    stage: int
    runs: tuple[tuple[int, int], ...]
    passes: dict[str, PassWork]  # by the key of an `OrderedPass`
    message_bytes: tuple[int, int] = (0, 0)


class OrderedPass(msgspec.Struct, frozen=True, kw_only=True):
    """A pass in the order in which a rank runs them; `key` finds its `PassWork`."""

    kind: PassKind
    key: str
    stage: int
    micro_batch: int | None = None  # None in passes of fully_shard alone


class RankWork(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks of one place in the pipeline do in one step: their passes in order, and the update.

    A long step's `order` has fewer micro-batches than the step. Each further one does what the one in the middle of the
    order does, whose number is half of those in the order, rounded down.
    """

    pipeline_rank: int
    stages: tuple[StageWork, ...]
    order: tuple[OrderedPass, ...]
    optimizer: StretchWork  # update of all parameters of the rank, with clipping before


class StepWork(msgspec.Struct, frozen=True, kw_only=True):
    """What one step does, a rank of each place in the pipeline; one of them without a pipeline."""

    ranks: tuple[RankWork, ...]
    micro_batches: int
