"""The settings of one training step. A `Setup` is created once, checked on creation, and passed on to the report.

    Setup(sequence_length=4096, recompute="full", precision="bf16")

Torch-free. `resolve` fills in the open fields (None) from the model; the result contains the resolved setup.
"""

from math import ceil
from typing import Any, Literal, get_args

import msgspec

from counting.recipes import (
    DEFAULT_OPTIMIZER,
    DEFAULT_PRECISION,
    Optimizer,
    Precision,
    find_optimizer,
    find_precision,
)
from torch_models.errors import ArgumentError, ConfigError
from torch_models.spec import MAX_SEQUENCE_LENGTH, Kernels, Recompute, check_kernels

MOST_CHUNKS = 256  # of the loss; more chunks save no memory worth reporting

# Fields for which only one value is measured so far.
FIXED: dict[str, object] = {
    "micro_batch_size": 1,
    "micro_batches": 1,
    "execution": "eager",
    "clip_gradients": False,
    "zero_gradients": "none",
}


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """How one training step is run, and how long its sequences are. Raises `UserError` for an invalid value."""

    sequence_length: int | None = None  # tokens; None: the length in the config
    sequence_length_source: str | None = None  # the config's field with the length, or "given"; set by `resolve`
    micro_batch_size: int = 1  # sequences
    micro_batches: int = 1  # per step
    kernels: Kernels = "fused"
    recompute: Recompute = "none"  # the part of the forward pass that is computed again during backward
    precision: str = DEFAULT_PRECISION.name  # a name in `recipes.PRECISIONS`
    optimizer: str = DEFAULT_OPTIMIZER.name  # a name in `recipes.OPTIMIZERS`
    mtp: bool | None = None  # train multi-token prediction too; None: if the config has it
    loss_chunk: int | None = None  # tokens whose logits are in memory at a time; None: all
    execution: Literal["eager"] = "eager"  # op by op
    clip_gradients: bool = False
    zero_gradients: Literal["none"] = "none"  # gradients are freed after a step (torch's set_to_none)
    measured_dtype: str | None = None  # dtype of the measurement on the meta device; set by `analyze`

    def __post_init__(self) -> None:
        for field, only in FIXED.items():
            value = getattr(self, field)
            if type(value) is not type(only) or value != only:
                raise ArgumentError(field, value, f"must be {only}: nothing else is measured yet")
        check_kernels(self.kernels)
        if self.recompute not in get_args(Recompute):
            raise ArgumentError("recompute", self.recompute, f"must be one of {', '.join(get_args(Recompute))}")
        if self.mtp is not None and not isinstance(self.mtp, bool):
            raise ArgumentError("mtp", self.mtp, "must be true, false or none")
        for field in ("sequence_length_source", "measured_dtype"):  # set by `resolve` and `analyze`
            if not isinstance(getattr(self, field), str | None):
                raise ArgumentError(field, getattr(self, field), "is filled in with the result: leave it out")
        if self.sequence_length is not None:
            _check_tokens("sequence_length", self.sequence_length)
        if self.loss_chunk is not None:
            _check_tokens("loss_chunk", self.loss_chunk)
        msgspec.structs.force_setattr(self, "precision", find_precision(self.precision).name)
        msgspec.structs.force_setattr(self, "optimizer", find_optimizer(self.optimizer).name)

    @property
    def precision_recipe(self) -> Precision:
        """The `Precision` recipe of that name."""
        return find_precision(self.precision)

    @property
    def optimizer_recipe(self) -> Optimizer:
        """The `Optimizer` recipe of that name."""
        return find_optimizer(self.optimizer)

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch; `sequence_length` must be set."""
        assert self.sequence_length is not None
        return self.micro_batch_size * self.sequence_length


def resolve(setup: Setup, model: Any) -> Setup:
    """`setup` for one model, with its open fields set: sequence length and multi-token prediction.

    `model` has a `name`, `sequence_length`, `sequence_length_source` and, if it can be trained here, `mtp_layers`.
    A `loss_chunk` as long as the sequence or longer becomes None. Raises `UserError` if no length is given, if `mtp` is
    true for a model without it, or if the loss would have more than `MOST_CHUNKS` chunks.
    """
    length, source = setup.sequence_length, "given"
    if length is None:
        length, source = model.sequence_length, model.sequence_length_source
        if length is None or source is None:
            rule = "is missing, and so is max_sequence_length; give sequence_length"
            raise ConfigError("max_position_embeddings", None, rule, model.name)
        _check_tokens(source, length)
    has_mtp = bool(getattr(model, "mtp_layers", ()))
    if setup.mtp and not has_mtp:
        rule = f"{model.name} has no multi-token prediction (num_nextn_predict_layers): leave it open, or give false"
        raise ArgumentError("mtp", True, rule)
    chunk = setup.loss_chunk
    if chunk is not None and chunk >= length:
        chunk = None
    if chunk is not None and (chunks := ceil(length / chunk)) > MOST_CHUNKS:
        rule = f"makes {chunks} chunks of {length} tokens of {model.name}, and the max is {MOST_CHUNKS}: give at least "
        raise ArgumentError("loss_chunk", chunk, f"{rule}{ceil(length / MOST_CHUNKS)}")
    return msgspec.structs.replace(
        setup,
        sequence_length=length,
        sequence_length_source=source,
        mtp=has_mtp if setup.mtp is None else setup.mtp,
        loss_chunk=chunk,
    )


def _check_tokens(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MAX_SEQUENCE_LENGTH:
        raise ArgumentError(field, value, f"must be a whole number of tokens from 1 to {MAX_SEQUENCE_LENGTH}")
