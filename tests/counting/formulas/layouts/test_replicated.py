"""What every rank of tp has and computes whole, and the sums over ranks."""

import random

import pytest
from msgspec import structs

from counting.formulas.flops import training_flops
from counting.formulas.layouts import ranks_by_formula, replicated_forward_flops, replicated_parameters
from counting.formulas.parameters import mtp_parameters, parameters
from tests.counting.formulas.layouts.cases import DEEPSEEK, LLAMA, layout_of, setup_of
from tests.random_specs import divisible, random_layer, random_model, widened
from tests.sweeps import seeds
from torch_models.fields.config import read_spec
from torch_models.spec import LayerRun


def test_by_hand() -> None:
    """Llama-3-8B: 2 x 32 + 1 norms of 4,096, and no product.

    DeepSeek-V3, 1 token: 61 layers with a query latent of 1,536 and 576 channels of keys and values, 7,168 wide: 61 x 2
    x 7,168 x 2,112 FLOPs; 58 routers of 256 experts: 58 x 2 x 7,168 x 256.
    """
    assert replicated_parameters(LLAMA, setup_of(LLAMA, sequence_length=8)) == 65 * 4096
    assert replicated_forward_flops(LLAMA, setup_of(LLAMA, sequence_length=8)) == 0
    latents = 61 * (7168 * (1536 + 576) + 1536 + 512)
    routers = 58 * 7168 * 256
    norms = (2 * 61 + 1) * 7168
    setup = setup_of(DEEPSEEK, sequence_length=1)
    assert replicated_parameters(DEEPSEEK, setup) == latents + routers + norms
    assert replicated_forward_flops(DEEPSEEK, setup) == 2 * (61 * 7168 * 2112 + routers)


def test_the_gate_of_shared_experts_by_hand() -> None:
    """Qwen1.5-MoE, 1 token: 24 layers with a router of 60 experts, a gate and two norms, and a final norm."""
    spec = read_spec("qwen1_5_moe_a2_7b")
    setup = setup_of(spec, sequence_length=1)
    assert replicated_parameters(spec, setup) == 24 * 2048 * (60 + 1 + 2) + 2048
    assert replicated_forward_flops(spec, setup) == 2 * 24 * 2048 * (60 + 1)


def test_learned_scales_of_a_router_by_hand() -> None:
    """Gemma-4-26B-A4B, 2,816 wide: tp must be 1, and a report of fully_shard alone shows what every rank of tp has.

    30 layers with 7 norms, a router of 128 experts and its scales of channels and experts; norms of queries and keys,
    256 channels in 25 layers and 512 in 5; a final norm.
    """
    spec = read_spec("gemma_4_26b_a4b")
    of_routers = 30 * (128 * 2816 + 2816 + 128)
    norms = 30 * 7 * 2816 + 2 * (25 * 256 + 5 * 512) + 2816
    assert replicated_parameters(spec, setup_of(spec, sequence_length=1)) == of_routers + norms


def test_multi_token_prediction_by_hand() -> None:
    """One layer more, with 3 norms and a projection of 2 x 7,168 to 7,168, which ranks repeat unless by position."""
    without, setup = setup_of(DEEPSEEK, sequence_length=1), setup_of(DEEPSEEK, sequence_length=1, mtp=True)
    projection = 2 * 7168 * 7168
    of_layer = 7168 * 2112 + 1536 + 512 + 7168 * 256 + 2 * 7168
    more = replicated_parameters(DEEPSEEK, setup) - replicated_parameters(DEEPSEEK, without)
    assert more == of_layer + projection + 3 * 7168
    by_position, everywhere = (
        replicated_forward_flops(DEEPSEEK, setup, sequence_parallel=by_position) for by_position in (True, False)
    )
    assert everywhere - by_position == 2 * projection


@pytest.mark.parametrize("seed", seeds(12, 200))
@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_sums_over_ranks(seed: int, sequence_parallel: bool) -> None:
    pick = random.Random(seed)
    tp = pick.choice([2, 4, 8])
    layer = widened(divisible(random_layer(pick)), tp)
    spec = random_model(pick, layer, seed)
    spec = structs.replace(spec, vocab_size=spec.vocab_size * tp, layer_runs=(LayerRun(layer=layer, count=2),))
    setup = setup_of(spec, sequence_length=8 * tp, micro_batches=3, mtp=None)
    profile = ranks_by_formula(spec, setup, layout_of(tp=tp, sequence_parallel=sequence_parallel))
    (share,) = profile.shares
    whole = parameters(spec).total + (mtp_parameters(spec).total if setup.mtp else 0)
    assert tp * share.parameters == whole + (tp - 1) * replicated_parameters(spec, setup)
    again = replicated_forward_flops(spec, setup, sequence_parallel=sequence_parallel)
    assert tp * profile.flops.forward.total == training_flops(spec, setup).forward.total + (tp - 1) * 3 * again
