"""FLOPs in closed form, forward and of a training step, with their arithmetic."""

import msgspec
import pytest

from counting.counts import AttentionCore, Counts, StepFlops
from counting.formulas.flops import (
    as_run,
    attention_core,
    forward_flops,
    fused_core_backward,
    head_flops,
    layer_step_flops,
    mtp_forward_flops,
    mtp_layer_step_flops,
    training_flops,
    without_window,
)
from counting.formulas.parameters import linear_weights, parameters
from counting.setup import Setup, resolve
from tests.shrunken import DEEPSEEK_V3, FAMILIES
from tests.witnesses import forward_of
from torch_models.fields.config import read_spec, spec_from_fields


def test_llama_7b_forward() -> None:
    """2 x 2048 for each of 6,607,077,376 weights in matrices, and 4 S^2 D for each of 32 layers' cores."""
    spec = read_spec("llama_7b")
    weights = parameters(spec).total - 32000 * 4096 - 65 * 4096
    core = 32 * 4 * 2048**2 * 4096
    assert forward_of(spec, 2048, 1).total == 2 * 2048 * weights + core
    assert forward_of(spec, 2048, 3) == forward_of(spec, 2048, 1) * 3
    assert head_flops(spec, 2048, 1) == Counts(lm_head=2 * 2048 * 4096 * 32000)


def test_the_core_of_a_window() -> None:
    """Mistral: 32 heads of 128 at 8192 tokens see 4096: S W pairs as run, causally S W - W^2 / 2, S^2 of the square."""
    attention = read_spec("mistral_7b").layers[0].attention
    per_pair = 4 * 32 * 128
    core = attention_core(attention, 8192, 1)
    assert core == AttentionCore(
        as_run=per_pair * 8192 * 4096,
        causal=per_pair * (8192 * 4096 - 4096**2 // 2),
        full_square=per_pair * 8192**2,
    )
    whole = attention_core(without_window(attention), 8192, 1)
    assert whole.as_run == whole.full_square == 2 * whole.causal == core.full_square
    # A window as long as the sequence is none.
    assert attention_core(attention, 4096, 1) == attention_core(without_window(attention), 4096, 1)


def test_the_core_of_chunks() -> None:
    """Llama-4: 40 heads of 128. 20,000 tokens are two chunks of 8,192 and one of 3,616, each a square."""
    chunked, whole = (layer.attention for layer, _ in read_spec("llama_4_scout").layer_groups())
    pairs = 2 * 8192**2 + 3616**2
    assert attention_core(chunked, 20_000, 1) == AttentionCore(
        as_run=4 * 40 * 128 * pairs, causal=2 * 40 * 128 * pairs, full_square=4 * 40 * 128 * 20_000**2
    )
    assert fused_core_backward(chunked, 20_000, 3) == 3 * 10 * 40 * 128 * pairs
    # A chunk as long as the sequence is none, nor is one of which a part is filled.
    for length in (8192, 2048):
        assert attention_core(chunked, length, 1) == attention_core(whole, length, 1)
    assert attention_core(without_window(chunked), 20_000, 1) == attention_core(whole, 20_000, 1)


def test_gemma_3_27b_at_32768() -> None:
    """52 of 62 layers see 1,024 positions of 32,768: 1.9745e15, and 2.8607e15 if they saw all.

    A layer's matrices: 2 x 5376 x 32 x 128 of queries and output, 2 x 5376 x 16 x 128 of keys and values, and
    3 x 5376 x 21504 of the MLP; the head has 262,208 x 5,376. A pair of positions takes 4 x 32 x 128.
    """
    spec, length = read_spec("gemma_3_27b"), 32768
    layer = 2 * 5376 * 4096 + 2 * 5376 * 2048 + 3 * 5376 * 21504
    products = 2 * length * (62 * layer + 262208 * 5376)
    per_pair = 4 * 32 * 128
    flops = forward_of(spec, length, 1).total
    assert flops == products + per_pair * (10 * length**2 + 52 * length * 1024)
    cores = [attention_core(layer.attention, length, 1) for layer in spec.layers]
    square = flops + sum(core.full_square - core.as_run for core in cores)
    assert square == products + per_pair * 62 * length**2
    assert (f"{flops:.4e}", f"{square:.4e}") == ("1.9745e+15", "2.8607e+15")


def test_gemma_4_26b_a4b() -> None:
    """At 2,048 tokens 25 of 30 layers see 1,024 positions; transformers' modules with the full square 18.06e12.

    Local layers have 16 heads and 8 key heads of 256 channels; global ones 16 and 2 of 512, whose keys are the values.
    Every layer has an MLP of 2,112, a router of 128 experts, and uses 8 of 704; the head has 262,144 words.
    """
    spec, length = read_spec("gemma_4_26b_a4b"), 2048
    of_local, of_global = 2 * 2816 * 16 * 256 + 2 * 2816 * 8 * 256, 2 * 2816 * 16 * 512 + 2816 * 2 * 512
    feed_forward = 3 * 2816 * 2112 + 2816 * 128 + 8 * 3 * 2816 * 704
    products = 2 * length * (25 * of_local + 5 * of_global + 30 * feed_forward + 262144 * 2816)
    cores = 25 * 4 * 16 * 256 * length * 1024 + 5 * 4 * 16 * 512 * length**2
    assert forward_of(spec, length, 1).total == products + cores == 17_200_404_496_384
    hidden = sum(
        core.full_square - core.as_run for core in (attention_core(each.attention, length, 1) for each in spec.layers)
    )
    assert products + cores + hidden == 18_059_397_955_584


def test_layers_without_positions_multiply_the_same_matrices() -> None:
    """SmolLM3 at 2,048 tokens: rotation multiplies no matrices. 4 x 16 x 128 for a pair of positions, in 36 layers."""
    spec = read_spec("smollm3_3b")
    layer = 2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 11008
    assert forward_of(spec, 2048, 1).total == (2 * 2048 * (36 * layer + 128256 * 2048) + 36 * 4 * 16 * 128 * 2048**2)
    assert forward_of(spec, 2048, 1).total == 13_831_942_176_768


def test_eager_kernels_multiply_what_a_window_hides() -> None:
    layer = read_spec("mistral_7b").layers[0]
    assert as_run(layer, "fused") == layer
    hidden = forward_flops(as_run(layer, "eager"), 8192, 1) - forward_flops(layer, 8192, 1)
    assert hidden == Counts(attention=4 * 32 * 128 * 8192 * 4096)


def test_a_gate_of_shared_experts() -> None:
    """Qwen1.5-MoE, 3 tokens: three matrices of 2048 x 5632 and a vector of 2048 numbers, 2 FLOPs each a token."""
    layer = read_spec("qwen1_5_moe_a2_7b").layers[0]
    assert forward_flops(layer, 3, 1).shared_experts == 3 * 2 * (3 * 2048 * 5632 + 2048)
    assert forward_of(read_spec("qwen1_5_moe_a2_7b"), 2048, 1).total == 10_563_941_826_560
    assert forward_of(read_spec("minimax_m2"), 2048, 1).total == 49_051_210_874_880


@pytest.mark.parametrize("family", FAMILIES)
def test_the_rest_of_a_dense_layer_is_two_flops_a_weight_and_token(family: str) -> None:
    layer = spec_from_fields(FAMILIES[family], "s").layers[0]
    if layer.kind.startswith("moe"):
        idle = linear_weights(layer.feed_forward.expert) * (  # type: ignore[union-attr]
            layer.feed_forward.router.num_experts - layer.feed_forward.router.top_k  # type: ignore[union-attr]
        )
        scores = layer.feed_forward.router.num_experts + layer.feed_forward.shared_expert_gate  # type: ignore[union-attr]
        router = scores * layer.hidden_size
    else:
        idle = router = 0
    counts = forward_flops(layer, 24, 1)
    flops = counts.total - counts.indexer - attention_core(layer.attention, 24, 1).as_run
    assert flops == 2 * 24 * (linear_weights(layer) - idle + router)


def test_a_training_step_is_three_forward_passes_and_the_scores_once_more() -> None:
    spec = read_spec("llama_7b")
    step = training_flops(spec, resolve(Setup(sequence_length=2048), spec))
    scores = 32 * 2 * 2048**2 * 4096
    assert step.forward == forward_of(spec, 2048, 1)
    assert step.hardware == 3 * step.forward.total + scores
    assert step.extra_products == scores
    eager = training_flops(spec, resolve(Setup(sequence_length=2048, kernels="eager"), spec))
    assert eager.hardware == eager.model == step.model


def test_what_is_recomputed() -> None:
    layer = read_spec("llama_7b").layers[0]
    forward, core = forward_flops(layer, 64, 1), attention_core(layer.attention, 64, 1).as_run
    again = {r: layer_step_flops(layer, 64, 1, "fused", r).recomputed for r in ("none", "selective", "full")}
    assert again == {"none": Counts(), "selective": Counts(attention=core), "full": forward}


def test_five_products_of_latent_attention_s_backward() -> None:
    """Three of 192 channels, two of 128, in 128 heads."""
    attention = read_spec("deepseek_v3").layers[0].attention
    assert fused_core_backward(attention, 10, 1) == 2 * 128 * 10**2 * (3 * 192 + 2 * 128)


def test_multi_token_prediction() -> None:
    """Twice: a projection of 2 D x D, the layer, the head."""
    spec = spec_from_fields(DEEPSEEK_V3 | {"num_nextn_predict_layers": 2}, "s")
    layer = spec.mtp_layers[0]
    projection = Counts(mlp=2 * 24 * 2 * 64 * 64)
    assert mtp_forward_flops(spec, 24, 1) == (forward_flops(layer, 24, 1) + projection + head_flops(spec, 24, 1)) * 2
    alone = layer_step_flops(layer, 24, 1, "fused", "full")
    with_projection = mtp_layer_step_flops(layer, 24, 1, "fused", "full")
    assert with_projection == alone + StepFlops(forward=projection, backward=projection * 2, recomputed=projection)
    head = head_flops(spec, 24, 1)
    main = msgspec.structs.replace(spec, mtp_layers=())
    setup = resolve(Setup(sequence_length=24, recompute="full"), spec)
    more = (with_projection + StepFlops(forward=head, backward=head * 2)) * 2
    assert training_flops(spec, setup) == training_flops(main, resolve(setup, spec)) + more
    assert training_flops(spec, msgspec.structs.replace(setup, mtp=False)) == training_flops(main, setup)


# GLM-5: in each of 78 layers queries, latents and output have these weights, and the indexer those.
GLM_5_ATTENTION = 6144 * 2048 + 2048 * 64 * 256 + 6144 * 576 + 512 * 64 * 448 + 64 * 256 * 6144
GLM_5_INDEXER = 2048 * 32 * 128 + 6144 * 128 + 6144 * 32


@pytest.mark.parametrize(
    ("length", "forward", "full_square"),
    [(2048, 191_389_111_418_880, 191_389_111_418_880), (32768, 3_710_465_196_687_360, 8_856_179_614_679_040)],
)
def test_glm_5_counts_the_chosen_keys(length: int, forward: int, full_square: int) -> None:
    """As transformers' modules at 2,048 tokens, where all keys are chosen; beyond, 2,048 keys for each query.

    A pair of query and key costs 2 (256 + 256) FLOPs in each of 64 heads, and 2 (128 + 1) in each of 32 of the indexer.
    """
    spec = read_spec("glm_5")
    found = forward_of(spec, length, 1)
    assert found.indexer == 78 * (2 * length * GLM_5_INDEXER + 2 * length**2 * 32 * 129)
    core = 78 * 64 * 2 * 512 * length * 2048
    assert found.attention == 78 * 2 * length * GLM_5_ATTENTION + core
    assert found.total == forward
    assert found.total + 78 * 64 * 2 * 512 * length * (length - 2048) == full_square
    (square, _) = (attention_core(layer.attention, length, 1) for layer, _ in spec.layer_groups())
    assert square.causal == 64 * 2 * 512 * (length * 2048 - 2048**2 // 2)


def test_an_indexer_has_no_backward_pass() -> None:
    spec = read_spec("deepseek_v3_2")
    step = training_flops(spec, resolve(Setup(sequence_length=4096, mtp=False, recompute="full"), spec))
    assert step.backward.indexer == 0
    assert step.recomputed.indexer == step.forward.indexer
    assert step.model == 3 * (step.forward.total - step.forward.indexer) + step.forward.indexer
    assert step.extra_products == 61 * 128 * 2 * 192 * 4096 * 2048
