"""Several models side by side, trained on the same number of tokens with the same GPU at the same utilisation.

The savings of a mixture of experts are relative to the same model with every routed expert run for every token. It
corresponds to a dense model of the same total size: each inactive parameter adds 6 FLOPs per token.
"""

from collections.abc import Sequence
from math import ceil

import msgspec

from counting.analysis import Analysis
from counting.cost.budget import DEFAULT_MFU, exactly, gpu_names
from counting.cost.conventions import training_flops_per_token
from counting.cost.run import Outcome, RunPlan, plan_run
from counting.cost.scaling_laws import FLOPS_PER_PARAMETER_AND_TOKEN
from counting.records.tidy import Tidy
from torch_models.errors import ArgumentError


class ComparedModel(msgspec.Struct, frozen=True, kw_only=True):
    """One model of the comparison."""

    model: str
    sequence_length: int
    mtp_trained: bool
    has_indexer: bool  # which runs forward only, and is not trained
    total_parameters: int
    active_parameters: int
    training_flops_per_token: int
    training_flops_per_token_if_dense: int  # every routed expert run for every token
    saved_by_routing: float  # 1 - training_flops_per_token / ..._if_dense; 0 for a dense model
    model_state_bytes: int
    step_peak_bytes: int | None  # on one device; None if no step was measured
    fewest_gpus: int
    outcome: Outcome
    cost_over_cheapest: float


class Comparison(Tidy, frozen=True, kw_only=True):
    """The compared models, and the settings that they share."""

    tokens: int
    gpu: str
    training_dtype: str
    price_usd_per_hour: float
    num_gpus: int | None
    mfu: float
    precision: str
    optimizer: str
    models: tuple[ComparedModel, ...]

    @property
    def has_indexer(self) -> bool:
        """Whether some of the models have one."""
        return any(model.has_indexer for model in self.models)


def compare(analyses: Sequence[Analysis], plan: RunPlan) -> Comparison:
    """The run of `plan` for each model, on one kind of GPU at one utilisation (`DEFAULT_MFU` if the plan has none).

    Raises UserError for fewer than two models, for setups that differ in sequence length, precision or optimiser, for
    a plan that does not have exactly one GPU or has several utilisations, published hours or a measured speed, and for
    everything that `plan_run` refuses.
    """
    _check_comparable(analyses, plan)
    runs = [plan_run(analysis, plan, assumed_mfus=(DEFAULT_MFU,)) for analysis in analyses]
    cheapest = min(run.gpus[0].outcomes[0].cost_usd for run in runs)
    models = []
    for analysis, run in zip(analyses, runs, strict=True):
        (on_gpu,) = run.gpus
        (outcome,) = on_gpu.outcomes
        flops = training_flops_per_token(analysis)
        inactive = analysis.parameters.total - analysis.parameters.active
        if_dense = flops + FLOPS_PER_PARAMETER_AND_TOKEN * inactive
        models.append(
            ComparedModel(
                model=run.model,
                sequence_length=run.sequence_length,
                mtp_trained=run.mtp_trained,
                has_indexer=run.has_indexer,
                total_parameters=run.total_parameters,
                active_parameters=run.active_parameters,
                training_flops_per_token=run.training_flops_per_token,
                training_flops_per_token_if_dense=ceil(if_dense),
                saved_by_routing=float(1 - flops / if_dense),
                model_state_bytes=run.model_state_bytes,
                step_peak_bytes=None if analysis.memory is None else analysis.memory.peak_bytes,
                fewest_gpus=on_gpu.fewest_gpus,
                outcome=outcome,
                cost_over_cheapest=float(exactly(outcome.cost_usd) / exactly(cheapest)),
            )
        )
    return Comparison(
        tokens=plan.tokens,
        gpu=on_gpu.gpu,
        training_dtype=on_gpu.training_dtype,
        price_usd_per_hour=on_gpu.price_usd_per_hour,
        num_gpus=plan.num_gpus,
        mfu=outcome.mfu,
        precision=run.precision,
        optimizer=run.optimizer,
        models=tuple(models),
    )


def _check_comparable(analyses: Sequence[Analysis], plan: RunPlan) -> None:
    if len(analyses) < 2:
        raise ArgumentError("analyses", len(analyses), "a comparison needs two models or more")
    if len(lengths := {analysis.sequence_length for analysis in analyses}) > 1:
        rule = "all compared models must have the same sequence_length"
        raise ArgumentError("sequence_length", ", ".join(map(str, sorted(lengths))), rule)
    for field in ("precision", "optimizer"):
        if len(values := {getattr(analysis.setup, field) for analysis in analyses}) > 1:
            raise ArgumentError(
                "analyses", ", ".join(sorted(values)), f"all compared models must have the same {field}"
            )
    if len(plan.gpus) != 1:
        rule = f"a comparison needs one GPU, but {len(plan.gpus)} are named"
        raise ArgumentError("gpus", ",".join(gpu_names(plan.gpus)), rule)
    for field, what in (("gpu_hours", "hours, which are"), ("tokens_per_second_per_gpu", "speed, which is")):
        if (value := getattr(plan, field)) is not None:
            rule = f"a comparison takes no {what} of one model's run: give the utilisation (mfu)"
            raise ArgumentError(field, value, rule)
    if plan.mfus is not None and len(plan.mfus) != 1:
        rule = f"a comparison needs one utilisation, but {len(plan.mfus)} are given"
        raise ArgumentError("mfu", ",".join(map(str, plan.mfus)), rule)
