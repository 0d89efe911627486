"""FLOPs of one training step in closed form: forward, backward, and what activation checkpointing runs again.

Torch-free; no module is read, as in flops.py, whose forward pass and legend these formulas take. Looking an
embedding up, its gradient, norms, softmax and the optimiser multiply no matrices.
"""

from collections import Counter
from functools import singledispatch

from counting.counts import Counts, StepFlops
from counting.formulas.flops import as_run, attention_core, forward_flops, head_flops
from counting.setup import Setup
from torch_models.spec import (
    AttentionSpec,
    GroupedQueryAttentionSpec,
    Kernels,
    LayerSpec,
    ModelSpec,
    MultiHeadLatentAttentionSpec,
    Recompute,
)


def training_flops(spec: ModelSpec, setup: Setup) -> StepFlops:
    """Of one training step over one micro-batch; `setup` is resolved, and its `mtp` says whether `mtp_layers` train.

    The head's logits are made for the main model and again for each multi-token-prediction layer (DeepSeek-V3, arXiv
    2412.19437, eq. 23). A loss in chunks of fewer tokens than there are keeps no logits, and makes them once more.
    """
    assert setup.sequence_length is not None and setup.mtp is not None, "a resolved setup"
    run = (setup.sequence_length, setup.micro_batch_size)
    how = (setup.kernels, setup.recompute)
    mtp_layers = spec.mtp_layers if setup.mtp else ()
    chunked = setup.loss_chunk is not None and setup.loss_chunk < setup.tokens
    head = head_flops(spec, *run)
    heads = StepFlops(forward=head, backward=head * 2, recomputed=head * chunked) * (1 + len(mtp_layers))
    layers = (layer_step_flops(layer, *run, *how) * count for layer, count in spec.layer_groups())
    further = (mtp_layer_step_flops(layer, *run, *how) * count for layer, count in Counter(mtp_layers).items())
    return sum((*layers, *further), heads)


def layer_step_flops(
    spec: LayerSpec, sequence_length: int, batch_size: int, kernels: Kernels, recompute: Recompute
) -> StepFlops:
    """Of one decoder layer. Each product A B of the forward pass is two of the backward pass: dC B^T and A^T dC.

    So it is for projections (Kaplan et al. 2020, arXiv 2001.08361, §2.1) and for the two products of eager attention;
    fused attention keeps too little for it, see `fused_core_backward`. Full recompute is the layer's forward pass once
    more (Chen et al. 2016, arXiv 1604.06174), selective recompute that of the attention core (Korthikanti et al. 2022,
    arXiv 2205.05198, §5).
    """
    run = (sequence_length, batch_size)
    spec = as_run(spec, kernels)
    forward = forward_flops(spec, *run)
    core = attention_core(spec.attention, *run).as_run
    core_backward = fused_core_backward(spec.attention, *run) if kernels == "fused" else 2 * core
    return StepFlops(
        forward=forward,
        backward=(forward - Counts(attention=core)) * 2 + Counts(attention=core_backward),
        recomputed={"none": Counts(), "selective": Counts(attention=core), "full": forward}[recompute],
    )


def mtp_layer_step_flops(
    spec: LayerSpec, sequence_length: int, batch_size: int, kernels: Kernels, recompute: Recompute
) -> StepFlops:
    """Of one multi-token-prediction layer, without the head: a decoder layer behind a projection of 2D x D.

    DeepSeek-V3, arXiv 2412.19437, eq. 21-22. The projection lies within what full recompute runs again.
    """
    projection = Counts(mlp=2 * batch_size * sequence_length * 2 * spec.hidden_size * spec.hidden_size)
    again = projection * (recompute == "full")
    layer = layer_step_flops(spec, sequence_length, batch_size, kernels, recompute)
    return layer + StepFlops(forward=projection, backward=projection * 2, recomputed=again)


@singledispatch
def fused_core_backward(spec: AttentionSpec, sequence_length: int, batch_size: int) -> int:
    """The backward pass of a fused attention core: five products, where the forward pass has two.

    Query by key for the scores, which were not kept, and the gradients of probabilities, values, queries and keys
    (Dao 2023, arXiv 2307.08691, §3.1.2): 2.5 times the forward pass if all heads are of one size. The pairs visited
    are those of the forward pass: S times the window where there is one.
    """
    raise AssertionError(f"no formula of fused attention's backward pass for {type(spec).__name__}")


@fused_core_backward.register
def _(spec: GroupedQueryAttentionSpec, sequence_length: int, batch_size: int) -> int:
    """2 head_dim for each of the five and each pair, in each of H heads; shared keys spare no product."""
    pairs = sequence_length * min(spec.window or sequence_length, sequence_length)
    return 2 * batch_size * spec.num_attention_heads * pairs * 5 * spec.head_dim


@fused_core_backward.register
def _(spec: MultiHeadLatentAttentionSpec, sequence_length: int, batch_size: int) -> int:
    """Scores and the gradients of queries and keys over nope + rope channels, the other two over v_head_dim."""
    channels = 3 * (spec.qk_nope_head_dim + spec.qk_rope_head_dim) + 2 * spec.v_head_dim
    return 2 * batch_size * spec.num_attention_heads * sequence_length**2 * channels
