"""An indexer that chooses keys: attention visits the chosen ones, and the indexer has no backward pass."""

from typing import Any

from counting.analysis import analyze
from counting.cost.conventions import main_attention_core
from counting.counts import AttentionCore
from counting.setup import Setup
from tests.foreign_families import SMALL, without
from torch_models.fields.config import ForeignConfig

LENGTH, WINDOW, WIDTH, RANK = 32, 8, 64, 32
HEADS, CHANNELS = 4, 16
INDEX_HEADS, INDEX_CHANNELS, CHOSEN = 2, 8, 3
RATIOS = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8}  # positions of one compressed key

# One layer in windows; one with 8 compressed keys, of which a query attends to 3; one with 4, to all of which it does.
DEEPSEEK_V4: dict[str, Any] = without(SMALL, "intermediate_size") | {
    "num_hidden_layers": 3,
    "num_key_value_heads": 1,
    "layer_types": ["sliding_attention", *RATIOS],
    "mlp_layer_types": ["moe"] * 3,
    "compress_rates": RATIOS,
    "sliding_window": WINDOW,
    "head_dim": CHANNELS,
    "q_lora_rank": RANK,
    "o_groups": 2,
    "o_lora_rank": 16,
    "index_n_heads": INDEX_HEADS,
    "index_head_dim": INDEX_CHANNELS,
    "index_topk": CHOSEN,
    "moe_intermediate_size": 16,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
}


def test_deepseek_v4_by_hand() -> None:
    """Scores and weighted values are 4 FLOPs a pair, head and channel, in the paper's CSA of the chosen keys alone.

    Of S queries and T compressed keys, S T / 2 pairs are causal; of K chosen keys S K - S / T K^2 / 2.
    """
    fields = {"model_type": "deepseek_v4", **DEEPSEEK_V4}
    config = ForeignConfig(name="small", source="small", model_type="deepseek_v4", fields=fields)
    analysis = analyze(config, Setup(sequence_length=LENGTH))
    sparse, heavy = LENGTH // 4, LENGTH // 8
    pair = 4 * HEADS * CHANNELS
    core = AttentionCore(
        as_run=pair * LENGTH * (3 * WINDOW + CHOSEN + heavy),
        causal=pair * (3 * (LENGTH * WINDOW - WINDOW**2 // 2) + LENGTH * CHOSEN - 4 * CHOSEN**2 // 2)
        + pair * LENGTH * heavy // 2,
        full_square=pair * LENGTH * (3 * LENGTH + sparse + heavy),
    )
    assert main_attention_core(analysis) == core
    projections = 2 * WIDTH * 2 * INDEX_CHANNELS + RANK * INDEX_HEADS * INDEX_CHANNELS + WIDTH * INDEX_HEADS
    indexer = 2 * LENGTH * (projections + sparse * INDEX_HEADS * INDEX_CHANNELS)
    assert analysis.forward_only_flops == indexer
    step = analysis.training
    assert step is not None
    assert step.model_flops == 3 * analysis.forward_flops - 2 * indexer
    assert step.backward_flops_by_component.get("indexer", 0) == 0
    assert step.hardware_flops - step.model_flops == core.as_run // 2  # the kernels compute their scores again
