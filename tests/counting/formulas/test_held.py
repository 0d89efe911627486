"""What is held, in closed form: equal to the simulation to the byte, and to arithmetic by hand.

The measurements hold both against real modules; here neither is run, so that many shapes are tried in little time.
"""

import random
from typing import Any

import msgspec
import pytest

from counting.formulas.held import (
    ForwardPass,
    attention_held,
    boundary_bytes,
    embedding_held,
    feed_forward_held,
    forward_pass,
    head_held,
    layer_held,
    loss_held,
    norm_held,
    router_held,
    weight_bytes,
)
from counting.formulas.memory import simulate
from counting.setup import MicroBatch, Setup, resolve
from tests.random_specs import random_layer, random_model
from tests.shrunken import DEEPSEEK_V3, FAMILIES
from tests.witnesses import at_most
from torch_models.fields.bundled import bundled_data
from torch_models.fields.config import read_spec, spec_from_fields
from torch_models.spec import Kernels, MixtureOfExpertsSpec, ModelSpec, Recompute

CONFIGS = sorted(file.name for file in bundled_data().iterdir() if file.name.endswith("_config.json"))
KERNELS: list[Kernels] = ["fused", "eager"]
RECOMPUTES: list[Recompute] = ["none", "selective", "per_op", "full"]
PRECISIONS = ["mixed", "mixed-fp32-gradients", "bf16", "fp8", "fp32"]  # activations of 2 bytes, but for the last
TWO_PREDICTIONS = DEEPSEEK_V3 | {"num_nextn_predict_layers": 2}


def check(spec: ModelSpec, setup: Setup) -> None:
    """Embedding, every kind of layer, and the loss: the closed forms equal the simulation."""
    setup = resolve(setup, spec)
    simulated = simulate(spec, setup, step=True).step_profile
    assert simulated is not None
    run = forward_pass(setup)
    layers = [layer_held(layer, run) for layer, _ in spec.layer_groups()]
    assert layers == [layer.held for layer in simulated.layers]
    assert embedding_held(spec, run) == simulated.embedding_held
    assert loss_held(spec, setup) == simulated.loss_held


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("loss_chunk", [None, 7])
@pytest.mark.parametrize("recompute", RECOMPUTES)
@pytest.mark.parametrize("kernels", KERNELS)
def test_every_family(kernels: Kernels, recompute: Recompute, loss_chunk: int | None, precision: str) -> None:
    for fields in (*FAMILIES.values(), TWO_PREDICTIONS):
        setup = Setup(
            sequence_length=24, kernels=kernels, recompute=recompute, loss_chunk=loss_chunk, precision=precision
        )
        check(spec_from_fields(fields, "shrunken"), setup)
        check(spec_from_fields(fields, "shrunken"), msgspec.structs.replace(setup, micro_batch_size=3))


@pytest.mark.parametrize("config", CONFIGS)
def test_every_config(config: str) -> None:
    spec = read_spec(config)
    length = at_most(2048, spec)
    for kernels in KERNELS:
        for recompute in RECOMPUTES:
            check(spec, Setup(sequence_length=length, kernels=kernels, recompute=recompute, loss_chunk=512))
            check(spec, Setup(sequence_length=length, kernels=kernels, recompute=recompute, precision="fp32"))


@pytest.mark.parametrize("seeds", [range(start, start + 50) for start in range(0, 400, 50)], ids=str)
def test_models_of_random_shape(seeds: range) -> None:
    for seed in seeds:
        pick = random.Random(seed)
        spec, length = (
            random_model(pick, random_layer(pick, indexers=True), seed),
            pick.choice([1, 2, 7, 64, 333, 4096]),
        )
        setup = Setup(
            sequence_length=length,
            micro_batch_size=pick.choice([1, 1, 2, 5]),
            kernels=pick.choice(KERNELS),
            recompute=pick.choice(RECOMPUTES),
            loss_chunk=pick.choice([None, None, -(-length // 3), -(-length // 40)]),
            precision=pick.choice(["mixed", "mixed", "fp32"]),
            mtp=pick.choice([None, False]),
        )
        check(spec, setup)


# --- By hand -----------------------------------------------------------------------------------------------------

LLAMA_7B = ForwardPass(MicroBatch(1, 2048), width=2, kernels="fused", recompute="none")


def test_a_layer_of_llama_7b() -> None:
    """D = 4096, F = 11008, H = 32 heads of 128, T = 2048, 16 bits, fused.

    Numbers of 2 bytes: norms' inputs 2 D, attention's input D, query, key, value and attended 4 D, the MLP's input D,
    and 4 F: 8 D + 4 F = 76800 a token. Of 4 bytes: two 1 / rms and 32 log-sum-exps a token. 24 bytes of random state.
    """
    ((layer, count),) = read_spec("llama_7b").layer_groups()
    assert count == 32
    assert norm_held(2048, 4096, LLAMA_7B) == 2048 * (2 * 4096 + 4)
    assert attention_held(layer.attention, LLAMA_7B) == 2048 * (2 * 5 * 4096 + 4 * 32) + 24
    assert feed_forward_held(layer.feed_forward, LLAMA_7B) == 2048 * 2 * (4096 + 4 * 11008)
    assert layer_held(layer, LLAMA_7B) == 2048 * (2 * 76800 + 4 * 34) + 24
    # Selective recompute spares the log-sum-exps and the random state, full recompute all but the boundary.
    assert layer_held(layer, LLAMA_7B._replace(recompute="selective")) == 2048 * (2 * 76800 + 4 * 2)
    assert layer_held(layer, LLAMA_7B._replace(recompute="full")) == boundary_bytes(layer, 2048) == 2 * 2048 * 4096
    # Eager: two squares of 16-bit and fp32 probabilities a head, a mask of one byte a pair; norms hold a copy in fp32
    # in place of their input, 1 / rms and the normalised rows.
    eager = LLAMA_7B._replace(kernels="eager")
    assert norm_held(2048, 4096, eager) == 2048 * (4 * 4096 + 4 + 2 * 4096)
    squares = 2048**2 * (32 * (2 + 4) + 1)
    assert layer_held(layer, eager) == 2048 * (2 * (76800 + 2 * 2 * 4096) + 4 * 2) + squares


def test_a_layer_of_llama_3_8b_recomputed_by_operation() -> None:
    """D = 4096, F = 14336, 32 heads of 128 and 8 key heads, T = 2 x 8192 tokens, 16 bits, fused.

    Products in order: query, key, value, output, gate, up, down, of which the first, third, fifth and seventh are kept:
    4096 + 1024 + 14336 + 4096 numbers a token; the attended values 4096; and the layer's input, 4096. Of 4 bytes: 32
    log-sum-exps a token. 24 bytes of random state.
    """
    ((layer, count),) = read_spec("llama_3_8b").layer_groups()
    run = ForwardPass(MicroBatch(2, 8192), width=2, kernels="fused", recompute="per_op")
    assert count == 32
    assert layer_held(layer, run) == 2 * 8192 * (2 * (23552 + 2 * 4096) + 4 * 32) + 24 == 1_042_284_568


def test_a_layer_of_experts_recomputed_by_operation() -> None:
    """DeepSeek-V3, T = 4096, 16 bits, fused: D = 7168, 128 heads, latents of 1536 and 576, 256 experts in 8 groups.

    Products in order: query latent 1536, queries 128 x 192, latent 576, keys and values 128 x 256, output 7168, shared
    gate 2048, up 2048, down 7168; the router's is not counted, nor kept, nor are the grouped products of experts.
    topk returns 2 experts of each of 8 groups, then 4 groups, then 8 experts, each 4 + 8 bytes.
    """
    layer = read_spec("deepseek_v3").layers[-1]
    run = ForwardPass(MicroBatch(1, 4096), width=2, kernels="fused", recompute="per_op")
    products, attended, x = 1536 + 576 + 7168 + 2048, 128 * 128, 7168
    choice = (2 * 8 + 4 + 8) * 12
    assert layer_held(layer, run) == 4096 * (2 * (products + attended + x) + 4 * 128 + choice) + 16


def test_sequences_share_the_mask_and_nothing_else() -> None:
    """Three sequences of 64 tokens: what one holds three times, but for the mask, one byte a pair, twice."""
    ((layer, _),) = read_spec("llama_7b").layer_groups()
    for kernels, shared in (("fused", 24), ("eager", 64**2)):  # 24 bytes: the random state of one kernel
        one, three = (LLAMA_7B._replace(kernels=kernels, micro_batch=MicroBatch(n, 64)) for n in (1, 3))
        assert layer_held(layer, three) == 3 * layer_held(layer, one) - 2 * shared


def test_the_loss_of_llama_7b() -> None:
    """V = 32000: fp32 logarithms of probabilities, and the head's input, whose place the last layer's output leaves.

    Then 1 / rms of the norm, whose input is the layer's output; the loss, its weights' sum, and how many labels.
    """
    setup = resolve(Setup(sequence_length=2048), read_spec("llama_7b"))
    assert loss_held(read_spec("llama_7b"), setup) == 2048 * (4 * 32000 + 2 * 4096 + 4) + 4 + 4 + 8
    chunked = resolve(Setup(sequence_length=2048, loss_chunk=256), read_spec("llama_7b"))
    assert loss_held(read_spec("llama_7b"), chunked) == 2048 * (2 * 4096 + 4) + 4 + 8


def test_grouped_heads_are_repeated_by_eager_kernels_alone() -> None:
    """64 query heads on 8 key/value heads of 128 (Llama-2 70B): 2 x 8 heads held fused, 2 x 64 eager."""
    ((layer, _),) = read_spec("llama_2_70b").layer_groups()
    fused, eager = (ForwardPass(MicroBatch(1, 64), width=2, kernels=k, recompute="none") for k in KERNELS)
    widths = 8192 + 2 * 64 * 128  # input; query and attended
    assert attention_held(layer.attention, fused) == 64 * 2 * (widths + 2 * 8 * 128) + 64 * 64 * 4 + 24
    squares = 64**2 * (64 * (2 + 4) + 1)
    assert attention_held(layer.attention, eager) == 64 * 2 * (widths + 2 * 64 * 128) + squares


def test_a_router_of_deepseek_v3() -> None:
    """D = 7168, 256 experts, 8 of a token: all fp32, but the indices of 8 bytes; the weights are normalised."""
    layer = read_spec("deepseek_v3").layer_groups()[1][0]
    assert isinstance(layer.feed_forward, MixtureOfExpertsSpec)
    run = ForwardPass(MicroBatch(1, 100), width=2, kernels="fused", recompute="none")
    by_hand = 4 * 100 * (7168 + 256) + 4 * 256 * 7168 + 8 * 100 * 8 + 4 * 100 * 9
    assert router_held(layer.feed_forward.router, run) == by_hand


def test_experts_of_deepseek_v3() -> None:
    """800 rows of 100 tokens: D in, 4 F, D out, a weight, two indices; where 256 experts end; one shared expert."""
    layer = read_spec("deepseek_v3").layer_groups()[1][0]
    assert isinstance(layer.feed_forward, MixtureOfExpertsSpec)
    run = ForwardPass(MicroBatch(1, 100), width=2, kernels="fused", recompute="none")
    rows = 800 * (2 * (7168 + 4 * 2048 + 7168 + 1) + 2 * 8) + 4 * 256
    shared = 2 * 100 * (7168 + 4 * 2048)
    assert feed_forward_held(layer.feed_forward, run) == router_held(layer.feed_forward.router, run) + rows + shared


def test_gated_shared_experts_of_qwen1_5_moe() -> None:
    """400 rows of 100 tokens to 60 experts of 1408; a shared one of 5632, its output of 2048, and a gate a token.

    By operation, products in order: queries, keys and values with biases, all kept; without: output, shared gate, up
    and down, and the score of their gate, of which the first, third and fifth are kept.
    """
    layer = read_spec("qwen1_5_moe_a2_7b").layers[0]
    assert isinstance(layer.feed_forward, MixtureOfExpertsSpec)
    run = ForwardPass(MicroBatch(1, 100), width=2, kernels="fused", recompute="none")
    rows = 400 * (2 * (2048 + 4 * 1408 + 2048 + 1) + 2 * 8) + 4 * 60
    shared = 2 * 100 * (2048 + 4 * 5632 + 2048 + 1)
    assert feed_forward_held(layer.feed_forward, run) == router_held(layer.feed_forward.router, run) + rows + shared
    products, attended, x = 3 * 2048 + 2048 + 5632 + 1, 2048, 2048
    per_op = 100 * (2 * (products + attended + x) + 4 * 16 + 12 * 4) + 24
    assert layer_held(layer, run._replace(recompute="per_op")) == per_op


def test_weights_of_a_layer() -> None:
    """Llama 7B's 202,383,360 in 16 bits; of DeepSeek-V3's experts 256 correction biases in fp32 beside them."""
    assert weight_bytes(read_spec("llama_7b").layer_groups()[0][0]) == 2 * 202_383_360
    moe = read_spec("deepseek_v3").layer_groups()[1][0]
    uncorrected = weight_bytes(moe) - 4 * 256
    assert uncorrected % 2 == 0
    assert uncorrected // 2 == 11_507_286_016


@pytest.mark.parametrize("cap", [None, 7.0])
def test_a_soft_cap_holds_the_output_of_tanh(cap: float | None) -> None:
    fields = FAMILIES["gemma2"] | {"final_logit_softcapping": cap}
    run = ForwardPass(MicroBatch(1, 10), width=2, kernels="fused", recompute="none")
    by_hand = 10 * (2 * 64 + 4 * 96 + (2 * 96 if cap else 0)) + 4 + 8
    assert head_held(spec_from_fields(fields, "s"), run, None) == by_hand


def test_multi_token_prediction_holds_more_only_where_it_is_trained() -> None:
    spec = spec_from_fields(TWO_PREDICTIONS, "s")
    main, with_mtp = (resolve(Setup(sequence_length=24, recompute="full", mtp=mtp), spec) for mtp in (False, True))
    # Of each: ids and labels, embedding, and a head.
    more = 24 * 2 * 8 + 24 * 2 * 64 + head_held(spec, forward_pass(main), None)
    assert loss_held(spec, with_mtp) == loss_held(spec, main) + 2 * more


def test_a_spec_without_a_formula_is_an_error() -> None:
    spec: Any = UnknownSpec()
    with pytest.raises(AssertionError, match="UnknownSpec"):
        attention_held(spec, LLAMA_7B)
    with pytest.raises(AssertionError, match="UnknownSpec"):
        feed_forward_held(spec, LLAMA_7B)


class UnknownSpec:
    """No spec that there is."""
