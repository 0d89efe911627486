"""FLOPs of one training step as a result. Torch-free."""

from counting.counts import AttentionCore, StepFlops, model_flops
from counting.records.tidy import Tidy
from counting.setup import Setup


class TrainingStep(Tidy, frozen=True, kw_only=True):
    """FLOPs of one training step, all micro-batches together, including multi-token prediction if it is trained.

    Model FLOPs are three times the forward pass, independent of recomputation, but once those of an indexer, which
    backward does not pass. Hardware FLOPs are all executed FLOPs: forward, backward and recomputed.
    """

    model_flops: int
    model_flops_causal: int  # attention without the keys in the future
    hardware_flops: int
    forward_flops: int
    backward_flops: int
    recomputed_flops: int
    forward_flops_by_component: dict[str, int]
    backward_flops_by_component: dict[str, int]
    recomputed_flops_by_component: dict[str, int]
    hardware_flops_by_component: dict[str, int]
    model_backward_flops: int  # model_flops less forward_flops
    flash_backward_extra_flops: int  # in backward_flops, not in model_flops: scores that fused attention recomputes
    # A token's share may be a fraction: a sequence that ends within a chunk has C² n + r² pairs of queries and keys.
    model_flops_per_token: float
    model_flops_causal_per_token: float
    hardware_flops_per_token: float


def training_step(flops: StepFlops, core: AttentionCore, setup: Setup) -> TrainingStep:
    """The result for a step with `flops`; `core` is the attention core of its forward passes."""
    tokens = setup.step_tokens
    causal = model_flops(core.causal_flops(flops.forward.total), flops.forward.forward_only)
    executed = flops.forward + flops.backward + flops.recomputed
    return TrainingStep(
        model_flops=flops.model,
        model_flops_causal=causal,
        hardware_flops=flops.hardware,
        forward_flops=flops.forward.total,
        backward_flops=flops.backward.total,
        recomputed_flops=flops.recomputed.total,
        forward_flops_by_component=flops.forward.by_component(),
        backward_flops_by_component=flops.backward.by_component(),
        recomputed_flops_by_component=flops.recomputed.by_component(),
        hardware_flops_by_component=executed.by_component(),
        model_backward_flops=flops.model - flops.forward.total,
        flash_backward_extra_flops=flops.extra_products,
        model_flops_per_token=flops.model / tokens,
        model_flops_causal_per_token=causal / tokens,
        hardware_flops_per_token=flops.hardware / tokens,
    )
