"""One training step as a result: how it is run, what it computes, and the checks that prove it. Torch-free.

Torch is imported when a step is measured, not with this module.
"""

from math import ceil
from typing import get_args

import msgspec

from counting.counts import AttentionCore, ModelCounts, StepFlops
from counting.formulas.step_flops import step_flops, without_mtp
from counting.recipes import DEFAULT_OPTIMIZER, DEFAULT_PRECISION, Optimizer, Precision
from counting.reconcile import Check, reconcile_step
from torch_models.errors import UserError, show_value
from torch_models.spec import MAX_SEQUENCE_LENGTH, Kernels, ModelSpec, Recompute

MOST_CHUNKS = 256  # of the loss; fewer tokens at a time save nothing that is worth seeing


class TrainingOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a training step is run. Raises `UserError` for a value that cannot be."""

    recompute: Recompute = "none"
    mtp: bool | None = None  # train multi-token prediction too; None: where the config has it
    loss_chunk: int | None = None  # tokens whose logits are in memory at a time; None for all
    precision: Precision = DEFAULT_PRECISION
    optimizer: Optimizer = DEFAULT_OPTIMIZER

    def __post_init__(self) -> None:
        if self.recompute not in get_args(Recompute):
            raise UserError(
                f"recompute = {show_value(self.recompute)}: must be one of {', '.join(get_args(Recompute))}"
            )
        chunk = self.loss_chunk
        whole = isinstance(chunk, int) and not isinstance(chunk, bool)
        if chunk is not None and not (whole and 1 <= chunk <= MAX_SEQUENCE_LENGTH):
            raise UserError(
                f"loss_chunk = {show_value(chunk)}: must be a whole number of tokens from 1 to {MAX_SEQUENCE_LENGTH}"
            )

    def of_sequence(self, sequence_length: int, name: str) -> "TrainingOptions":
        """The same for one sequence of the model `name`: a chunk as long as the sequence is none.

        Every chunk is run, so there may not be too many; raises `UserError`.
        """
        chunk = self.loss_chunk
        if chunk is None or chunk >= sequence_length:
            return msgspec.structs.replace(self, loss_chunk=None)
        chunks = ceil(sequence_length / chunk)
        if chunks > MOST_CHUNKS:
            raise UserError(
                f"{name}: loss_chunk = {chunk}: makes {chunks} chunks of {sequence_length} tokens, and may make "
                f"{MOST_CHUNKS}: give at least {ceil(sequence_length / MOST_CHUNKS)}"
            )
        return self


class TrainingStep(msgspec.Struct, frozen=True, kw_only=True):
    """FLOPs of one training step over one sequence; those of several sequences are as many times these.

    Model FLOPs are three times the forward pass, however the step is run; hardware FLOPs are what is executed: forward,
    backward and recomputed.
    """

    recompute: Recompute
    mtp: bool  # multi-token prediction is in all these numbers: its projections, its layers, and the head for each
    loss_chunk: int | None
    sequence_length: int
    model_flops: int
    model_flops_causal: int  # of attention, only the pairs that are not in the future
    hardware_flops: int
    forward_flops: int
    backward_flops: int
    recomputed_flops: int
    forward_flops_by_component: dict[str, int]
    backward_flops_by_component: dict[str, int]
    recomputed_flops_by_component: dict[str, int]
    flash_backward_extra_flops: int  # in backward_flops and not in model_flops: fused attention's scores, made again
    model_flops_per_token: int
    model_flops_causal_per_token: float  # the one of these that need not be whole
    hardware_flops_per_token: int


def analyze_step(
    spec: ModelSpec, counts: ModelCounts, sequence_length: int, kernels: Kernels, options: TrainingOptions
) -> tuple[TrainingStep, tuple[Check, ...]]:
    """Measure one step of the model whose forward pass has `counts`, and hold it against the formulas.

    Raises `UserError` where multi-token prediction is asked for and the model has none, `DisagreementError` where
    module and formula differ.
    """
    if options.mtp and not spec.mtp_layers:
        raise UserError(
            f"mtp = on: {spec.name} has no multi-token prediction (num_nextn_predict_layers); leave it out or say off"
        )
    trained = without_mtp(spec) if options.mtp is False else spec

    from counting.measurements.dispatch import measure_step

    run = (trained, sequence_length, kernels)
    measured = measure_step(*run, recompute=options.recompute, loss_chunk=options.loss_chunk)
    derived = step_flops(*run, recompute=options.recompute, loss_chunk=options.loss_chunk)
    checks = reconcile_step(spec.name, measured, derived)
    core = counts.attention_core
    if trained.mtp_layers:
        core += counts.mtp.attention_core
    return _step(measured, core, sequence_length, bool(trained.mtp_layers), options), checks


def _step(
    flops: StepFlops, core: AttentionCore, sequence_length: int, mtp: bool, options: TrainingOptions
) -> TrainingStep:
    causal = flops.model - 3 * (core.as_run - core.causal)
    assert flops.model % sequence_length == flops.hardware % sequence_length == 0, "every product has a row per token"
    return TrainingStep(
        recompute=options.recompute,
        mtp=mtp,
        loss_chunk=options.loss_chunk,
        sequence_length=sequence_length,
        model_flops=flops.model,
        model_flops_causal=causal,
        hardware_flops=flops.hardware,
        forward_flops=flops.forward.total,
        backward_flops=flops.backward.total,
        recomputed_flops=flops.recomputed.total,
        forward_flops_by_component=flops.forward.by_component(),
        backward_flops_by_component=flops.backward.by_component(),
        recomputed_flops_by_component=flops.recomputed.by_component(),
        flash_backward_extra_flops=flops.extra_products,
        model_flops_per_token=flops.model // sequence_length,
        model_flops_causal_per_token=causal / sequence_length,
        hardware_flops_per_token=flops.hardware // sequence_length,
    )
