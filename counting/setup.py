"""The settings of one training step. A `Setup` is created once, checked on creation, and passed on to the report.

    Setup(sequence_length=4096, recompute="full", precision="bf16")

Torch-free. `resolve` fills in the open fields (None) from the model; the result contains the resolved setup.
"""

import re
from math import ceil
from typing import Any, Literal, NamedTuple, get_args

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
from torch_models.recomputed_layers import check_recompute
from torch_models.spec import MAX_SEQUENCE_LENGTH, Kernels, ModelRecompute, check_kernels

MTP_MODULES = re.compile(r"num_mtp_modules = ")  # of a model whose published weights have none
MOST_CHUNKS = 256  # of the loss; more chunks save no memory worth reporting

MOST_MICRO_BATCHES = 10**9
MOST_BATCH_TOKENS = 10**12

ZeroGradients = Literal["none", "in_place"]
Execution = Literal["eager", "compiled"]


class MicroBatch(NamedTuple):
    """The shape of a forward pass: equally long sequences that run together."""

    sequences: int  # B
    length: int  # S, tokens of each sequence

    @property
    def tokens(self) -> int:
        """T = B S."""
        return self.sequences * self.length


class Setup(msgspec.Struct, frozen=True, kw_only=True):
    """How one training step is run, and how long its sequences are. Raises `UserError` for an invalid value."""

    sequence_length: int | None = None  # tokens; None: the length in the config
    sequence_length_source: str | None = None  # the config's field with the length, or "given"; set by `resolve`
    micro_batch_size: int = 1  # sequences that run together
    micro_batches: int | None = None  # of a step, one after the other; None: from global_batch_tokens, else 1
    global_batch_tokens: int | None = None  # of a step; None if that is one sequence, by default
    kernels: Kernels = "fused"
    recompute: ModelRecompute = "none"  # the part of the forward pass that is computed again during backward
    precision: str = DEFAULT_PRECISION.name  # a name in `recipes.PRECISIONS`
    optimizer: str = DEFAULT_OPTIMIZER.name  # a name in `recipes.OPTIMIZERS`
    mtp: bool | None = None  # train multi-token prediction too; None: if the config has it
    loss_chunk: int | None = None  # tokens whose logits are in memory at a time; None: all
    execution: Execution = "eager"  # op by op; or each layer compiled: of what is reserved and of the time
    clip_gradients: bool = False  # scale the gradients to a maximal total norm before the optimiser's step
    zero_gradients: ZeroGradients = "none"  # freed after a step (torch's set_to_none), or kept and filled with zeros
    expandable_segments: bool = False  # PYTORCH_CUDA_ALLOC_CONF's setting of the caching allocator
    measured_dtype: str | None = None  # dtype of the measurement on the meta device; set by `analyze`

    def __post_init__(self) -> None:
        if self.execution not in get_args(Execution):
            raise ArgumentError("execution", self.execution, f"must be one of {', '.join(get_args(Execution))}")
        check_kernels(self.kernels)
        check_recompute(self.recompute)
        if self.mtp is not None and not isinstance(self.mtp, bool):
            raise ArgumentError("mtp", self.mtp, "must be true, false or none")
        if not isinstance(self.clip_gradients, bool):
            raise ArgumentError("clip_gradients", self.clip_gradients, "must be true or false")
        if not isinstance(self.expandable_segments, bool):
            raise ArgumentError("expandable_segments", self.expandable_segments, "must be true or false")
        for field in ("sequence_length_source", "measured_dtype"):  # set by `resolve` and `analyze`
            if not isinstance(getattr(self, field), str | None):
                raise ArgumentError(field, getattr(self, field), "is filled in with the result: leave it out")
        if self.zero_gradients not in get_args(ZeroGradients):
            rule = f"must be one of {', '.join(get_args(ZeroGradients))}"
            raise ArgumentError("zero_gradients", self.zero_gradients, rule)
        _check_whole("micro_batch_size", self.micro_batch_size, MAX_SEQUENCE_LENGTH, "sequences")
        if self.micro_batches is not None:
            _check_whole("micro_batches", self.micro_batches, MOST_MICRO_BATCHES, "micro-batches")
        if self.global_batch_tokens is not None:
            _check_whole("global_batch_tokens", self.global_batch_tokens, MOST_BATCH_TOKENS, "tokens")
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
    def step_tokens(self) -> int:
        """Tokens of one step on one rank, all micro-batches together; the setup must be resolved."""
        assert self.micro_batches is not None
        return self.micro_batches * self.tokens

    @property
    def micro_batch(self) -> MicroBatch:
        """The shape of one micro-batch; `sequence_length` must be set."""
        assert self.sequence_length is not None
        return MicroBatch(self.micro_batch_size, self.sequence_length)

    @property
    def tokens(self) -> int:
        """Tokens of one micro-batch; `sequence_length` must be set."""
        return self.micro_batch.tokens


def resolve(setup: Setup, model: Any, *, data_ranks: int = 1) -> Setup:
    """`setup` for one model, with its open fields set: sequence length and multi-token prediction.

    `model` has a `name`, `sequence_length`, `sequence_length_source` and, if it can be trained here, `mtp_layers`.
    `micro_batches`, those of each of the `data_ranks` ranks that have different data, and `global_batch_tokens`, of all
    of them, follow from each other; in a step of one sequence, the default, the latter stays None unless it is given. A
    `loss_chunk` as long as the micro-batch or longer becomes None. Raises `UserError` if no length is given, if it is
    longer than a learned table of positions, if a micro-batch has too many tokens, if the global batch is not made of
    whole micro-batches, if `mtp` is true for a model without it, if every N-th layer is to be recomputed and the model
    has fewer than N, or if the loss would have more than `MOST_CHUNKS` chunks.
    """
    length, source = setup.sequence_length, "given"
    if length is None:
        length, source = model.sequence_length, model.sequence_length_source
        if length is None or source is None:
            rule = "is missing, and so is max_sequence_length; give sequence_length"
            raise ConfigError("max_position_embeddings", None, rule, model.name)
        _check_tokens(source, length)
    _check_positions(length, model)
    micro_batch = MicroBatch(setup.micro_batch_size, length)
    if micro_batch.tokens > MAX_SEQUENCE_LENGTH:
        rule = f"makes {micro_batch.tokens} tokens with sequences of {length}, and the max is {MAX_SEQUENCE_LENGTH}"
        raise ArgumentError("micro_batch_size", setup.micro_batch_size, rule)
    micro_batches = _micro_batches(setup, micro_batch, data_ranks, model.name)
    step_tokens = micro_batches * micro_batch.tokens * data_ranks
    has_mtp = bool(getattr(model, "mtp_layers", ()))
    if setup.mtp and not has_mtp:
        rule = f"{model.name} has no multi-token prediction ({_mtp_field(model)}): leave it open, or give false"
        raise ArgumentError("mtp", True, rule)
    _check_interval(setup.recompute, model)
    chunk = setup.loss_chunk
    tokens = micro_batch.tokens
    if chunk is not None and chunk >= tokens:
        chunk = None
    if chunk is not None and (chunks := ceil(tokens / chunk)) > MOST_CHUNKS:
        rule = f"makes {chunks} chunks of {tokens} tokens of {model.name}, and the max is {MOST_CHUNKS}: give at least "
        raise ArgumentError("loss_chunk", chunk, f"{rule}{ceil(tokens / MOST_CHUNKS)}")
    return msgspec.structs.replace(
        setup,
        sequence_length=length,
        sequence_length_source=source,
        micro_batches=micro_batches,
        global_batch_tokens=setup.global_batch_tokens if step_tokens == length else step_tokens,
        mtp=has_mtp if setup.mtp is None else setup.mtp,
        loss_chunk=chunk,
    )


def _mtp_field(model: Any) -> str:
    """The field that would give the model multi-token prediction; if it has no part in the model, with the reason."""
    entries = (entry for entry in getattr(model, "passed_over_fields", ()) if MTP_MODULES.match(entry))
    return next(entries, "num_nextn_predict_layers").replace(" (", ": ", 1).removesuffix(")")


def _check_positions(length: int, model: Any) -> None:
    """Raise `ConfigError` for a sequence that is longer than a learned table of positions, under the file's name."""
    rows = getattr(model, "learned_positions", None)
    if rows is not None and length > rows:
        rule = f"a sequence of {length:,} tokens is longer, and the table of positions has no more rows; "
        source = model.sequence_length_source
        field = source if source == "max_position_embeddings" else "n_positions"
        raise ConfigError(field, rows, f"{rule}give sequence_length, of at most {rows:,}", model.name)


def _check_interval(recompute: ModelRecompute, model: Any) -> None:
    layers = getattr(model, "num_layers", None)
    if isinstance(recompute, int) and layers is not None and recompute > layers:
        rule = f"leaves no layer to be recomputed: {model.name} has {layers}"
        raise ArgumentError("recompute", recompute, rule)


def _micro_batches(setup: Setup, micro_batch: MicroBatch, ranks: int, name: str) -> int:
    """Micro-batches of a step on each rank, from either field; raises `ArgumentError` if the two do not agree."""
    given, batch_tokens, tokens = setup.micro_batches, setup.global_batch_tokens, micro_batch.tokens * ranks
    if batch_tokens is None:
        if given is not None and given * tokens > MOST_BATCH_TOKENS:
            rule = f"makes {given * tokens} tokens a step, of {tokens} each, and the max is {MOST_BATCH_TOKENS}"
            raise ArgumentError("micro_batches", given, rule)
        return given or 1
    on_ranks = f" on each of {ranks} ranks" if ranks > 1 else ""
    of_each = f"{micro_batch.sequences} x {micro_batch.length} tokens of {name}{on_ranks}"
    if given is not None and batch_tokens != given * tokens:
        rule = f"is not {given} micro-batches of {of_each}, which are {given * tokens}: leave out one of the two"
        raise ArgumentError("global_batch_tokens", batch_tokens, rule)
    whole, rest = divmod(batch_tokens, tokens)
    if rest:
        nearest = " or ".join(str(number * tokens) for number in (whole, whole + 1) if number)
        rule = f"must be a multiple of one micro-batch, {of_each}: give {nearest}"
        raise ArgumentError("global_batch_tokens", batch_tokens, rule)
    return whole


def _check_tokens(field: str, value: object) -> None:
    _check_whole(field, value, MAX_SEQUENCE_LENGTH, "tokens")


def _check_whole(field: str, value: object, most: int, unit: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise ArgumentError(field, value, f"must be a whole number of {unit} from 1 to {most}")
