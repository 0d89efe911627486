"""Which products a layer keeps under recomputation by operation, and the bytes and FLOPs of these, in closed form.

As torchtitan's selective checkpointing by operation (torchtitan/distributed/activation_checkpoint.py, August 2026): the
outputs of products and attention are kept, and all others computed again. Of products without bias every second one is
computed again too, in the order in which the layer runs them. The router's product always is, and does not count; nor
does any other with a matrix of its shape. Grouped products of experts are computed again. Besides, the layer keeps what
topk returns, and what reduce-scatter and all-to-all bring from other ranks (`counting.formulas.local.held`).

Example: Llama's layer has 7 products without bias, of queries, keys, values, output, gate, up and down. The second,
fourth and sixth are computed again: keys, output and up.

The legend of dimension letters is in `counting.formulas.held`.
"""

from collections.abc import Iterator
from typing import NamedTuple

from counting.counts import Counts
from torch_models.spec import (
    GatedMLPSpec,
    GroupedQueryAttentionSpec,
    LayerSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    MultiHeadLatentAttentionSpec,
    RouterSpec,
)

LOGIT_BYTES = 4  # of the router, in fp32
INDEX_SCORE_BYTES = 4  # of an indexer, in fp32
CHOICE_BYTES = 4 + 8  # of what topk returns: a value in fp32 with its index in int64


class Product(NamedTuple):
    """A product of tokens with a matrix; its output has `outputs` numbers a token."""

    component: str
    inputs: int
    outputs: int
    bias: bool


def kept_products(spec: LayerSpec, *, predicts: bool = False) -> list[Product]:
    """Return the products whose outputs are kept, in order; with `predicts`, of a multi-token-prediction layer."""
    kept, count = [], 0
    mixture = spec.feed_forward
    router = mixture.router if isinstance(mixture, MixtureOfExpertsSpec) else None
    for product in _products(spec, predicts=predicts):
        if product.bias:
            kept.append(product)
        elif router is None or (product.inputs, product.outputs) != (router.hidden_size, router.num_experts):
            count += 1
            kept += [product] * (count % 2)
    return kept


def kept_products_flops(spec: LayerSpec, tokens: int, *, predicts: bool = False) -> Counts:
    """Return the FLOPs of the kept products of a layer, which are not computed again; those of attention are apart."""
    total = Counts()
    for component, inputs, outputs, _ in kept_products(spec, predicts=predicts):
        total += Counts(**{component: 2 * tokens * inputs * outputs})
    return total


def kept_outputs(spec: LayerSpec, tokens: int, width: int, *, predicts: bool = False) -> int:
    """Return the bytes of the outputs that are kept, with `width` bytes of an activation; those of scores are apart.

    - products: those of `kept_products`; the router's logits, which are kept if it has a bias, are in fp32;
    - attended: the output of the attention core;
    - choice: what topk returns to the router.

    The output of the layer's last product is held, if it is kept, though backward does not need it.

    Llama-3-8B, T = 8,192, 16 bits: queries 4,096, values 1,024, gate 14,336, down 4,096 and attended 4,096 numbers a
    token: 8,192 x 27,648 x 2 = 452,984,832 bytes.
    """
    widths = {"router": LOGIT_BYTES}
    of_products = [widths.get(each.component, width) * each.outputs for each in kept_products(spec, predicts=predicts)]
    attention, mixture = spec.attention, spec.feed_forward
    channels = attention.head_dim if isinstance(attention, GroupedQueryAttentionSpec) else attention.v_head_dim
    attended = width * attention.num_attention_heads * channels
    choice = _choice_held(mixture.router) if isinstance(mixture, MixtureOfExpertsSpec) else 0
    return tokens * (sum(of_products) + attended + choice)


def kept_choice_of_keys(spec: LayerSpec, length: int) -> int:
    """Return the bytes a token of what topk returns to an indexer: the K keys that it chooses of `length` positions."""
    attention = spec.attention
    if isinstance(attention, GroupedQueryAttentionSpec) or attention.indexer is None:
        return 0
    return CHOICE_BYTES * min(attention.indexer.top_k, length)


def kept_index_score_bytes(spec: LayerSpec, length: int) -> int:
    """Return the bytes a token of an indexer's scores with eager kernels: by head, and summed over heads, in fp32."""
    attention = spec.attention
    if isinstance(attention, GroupedQueryAttentionSpec) or attention.indexer is None:
        return 0
    return INDEX_SCORE_BYTES * (attention.indexer.num_heads + 1) * length


def _choice_held(spec: RouterSpec) -> int:
    """Bytes a token of what topk returns.

    - choice: the K experts;
    - ranks: with groups, the best experts of each group;
    - groups: with groups, those that are eligible.
    """
    if spec.n_group == 1:
        return CHOICE_BYTES * spec.top_k
    ranks = spec.n_group * spec.group_rank_experts
    return CHOICE_BYTES * (spec.top_k + ranks + spec.topk_group)


def _products(spec: LayerSpec, *, predicts: bool) -> Iterator[Product]:
    """All products with a matrix in the order in which the layer runs them."""
    if predicts:  # the projection of multi-token prediction
        yield Product("mlp", 2 * spec.hidden_size, spec.hidden_size, False)
    if isinstance(spec.attention, GroupedQueryAttentionSpec):
        yield from _of_grouped_queries(spec.attention)
    else:
        yield from _of_latents(spec.attention)
    mixture = spec.feed_forward
    if spec.parallel_mlp is not None:
        yield from _of_mlp(spec.parallel_mlp, "mlp")
    if isinstance(mixture, GatedMLPSpec | MLPSpec):
        yield from _of_mlp(mixture, "mlp")
        return
    yield Product("router", mixture.router.hidden_size, mixture.router.num_experts, mixture.router.bias)
    if mixture.shared_experts is not None:
        yield from _of_mlp(mixture.shared_experts, "shared_experts")
    if mixture.shared_expert_gate:
        yield Product("shared_experts", mixture.router.hidden_size, 1, False)


def _of_grouped_queries(spec: GroupedQueryAttentionSpec) -> Iterator[Product]:
    queries, keys = spec.num_attention_heads * spec.head_dim, spec.num_key_value_heads * spec.head_dim
    for outputs in (queries, keys) if spec.keys_as_values else (queries, keys, keys):
        yield Product("attention", spec.hidden_size, outputs, spec.qkv_bias)
    yield Product("attention", queries, spec.hidden_size, spec.output_bias)


def _of_latents(spec: MultiHeadLatentAttentionSpec) -> Iterator[Product]:
    heads, width = spec.num_attention_heads, spec.hidden_size
    if spec.q_lora_rank is None:
        yield Product("attention", width, heads * spec.qk_head_dim, False)
    else:
        yield Product("attention", width, spec.q_lora_rank, spec.bias)
        if spec.indexer is not None:
            yield Product("indexer", spec.q_lora_rank, spec.indexer.num_heads * spec.indexer.head_dim, False)
            yield Product("indexer", width, spec.indexer.head_dim, False)
            yield Product("indexer", width, spec.indexer.num_heads, False)
        yield Product("attention", spec.q_lora_rank, heads * spec.qk_head_dim, False)
    yield Product("attention", width, spec.kv_lora_rank + spec.qk_rope_head_dim, spec.bias)
    yield Product("attention", spec.kv_lora_rank, heads * (spec.qk_nope_head_dim + spec.v_head_dim), False)
    yield Product("attention", heads * spec.v_head_dim, width, spec.bias)


def _of_mlp(spec: GatedMLPSpec | MLPSpec, component: str) -> Iterator[Product]:
    for _ in ("gate", "up") if isinstance(spec, GatedMLPSpec) else ("up",):
        yield Product(component, spec.hidden_size, spec.intermediate_size, spec.bias)
    yield Product(component, spec.intermediate_size, spec.hidden_size, spec.bias)
