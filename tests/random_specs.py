"""Layers and models of extreme proportions, for tests that hold one witness against another."""

import random
from typing import Any

from msgspec import structs

from torch_models.layout import Layout
from torch_models.spec import (
    ClampedMLPSpec,
    GatedMLPSpec,
    GroupedQueryAttentionSpec,
    IndexerSpec,
    LayerRun,
    LayerSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    ModelSpec,
    MultiHeadLatentAttentionSpec,
    NormPlacement,
    NormType,
    RotarySpec,
    RouterSpec,
    TemperatureSpec,
)


def random_layer(pick: random.Random, *, indexers: bool = False) -> LayerSpec:
    """A layer of extreme proportions, so that its memory peaks at a moment that no real model's does.

    With `indexers` its attention may have one, which tp and cp do not divide.
    """
    width, bias = pick.choice([8, 16, 64, 256, 1024]), pick.random() < 0.3
    attention: GroupedQueryAttentionSpec | MultiHeadLatentAttentionSpec
    if pick.random() < 0.5:
        groups, channels = pick.choice([1, 2, 3, 8]), pick.choice([2, 8, 16, 128])
        rotary = pick.choice([None, RotarySpec(dim=channels, theta=1e4), RotarySpec(dim=2, theta=1e4)])
        norms = pick.choice([None, "head", "width", *(["l2"] if rotary else [])])
        value_norm = pick.random() < 0.2
        window, chunk = pick.choice([(None, None), (None, None), (1, None), (5, None), (100, None), (None, 7)])
        attention = GroupedQueryAttentionSpec(
            hidden_size=width,
            num_attention_heads=groups * pick.choice([1, 2, 5]),
            num_key_value_heads=groups,
            head_dim=channels,
            rotary=rotary,
            qkv_bias=bias,
            output_bias=pick.random() < 0.3,
            query_key_norm=norms,
            norm_unit_offset=norms == "head" and pick.random() < 0.3,
            value_norm=value_norm,
            keys_as_values=value_norm and norms == "head" and rotary is not None,
            window=window,
            chunk=chunk,
            temperature=pick.choice([None, None, TemperatureSpec(floor_scale=8, scale=0.4)]),
            logit_softcap=pick.choice([None, None, 5.0]),
            sinks=pick.random() < 0.3,
        )
    else:
        rope, nope = pick.choice([2, 8, 64]), pick.choice([1, 8, 128])
        attention = MultiHeadLatentAttentionSpec(
            hidden_size=width,
            num_attention_heads=pick.choice([1, 2, 7, 16]),
            q_lora_rank=pick.choice([None, 1, 8, 300]),
            kv_lora_rank=pick.choice([1, 16, 512]),
            qk_nope_head_dim=nope,
            qk_rope_head_dim=rope,
            v_head_dim=pick.choice([2, nope + rope, 128]),
            rotary=RotarySpec(dim=rope, theta=1e4, interleaved=pick.random() < 0.5),
            bias=bias,
        )
        if indexers and attention.q_lora_rank is not None and pick.random() < 0.5:
            indexer = IndexerSpec(
                num_heads=pick.choice([1, 3, 32]),
                head_dim=rope + pick.choice([0, 1, 64]),
                top_k=pick.choice([1, 5, 1000]),
                interleaved=pick.random() < 0.5,
            )
            attention = structs.replace(attention, indexer=indexer)

    def mlp(intermediate_size: int, bias: bool = False) -> GatedMLPSpec:
        return GatedMLPSpec(
            hidden_size=width,
            intermediate_size=intermediate_size,
            activation=pick.choice(["silu", "gelu", "gelu_pytorch_tanh"]),
            bias=bias,
        )

    placement: NormPlacement = pick.choice(["before", "after", "around"])
    offset = pick.random() < 0.3
    norm_type: NormType = "layer_norm" if not offset and pick.random() < 0.3 else "rms_norm"
    if pick.random() < 0.4:
        dense: GatedMLPSpec | MLPSpec = mlp(pick.choice([1, 24, 1000, 4096]), bias)
        if pick.random() < 0.3:
            dense = MLPSpec(**structs.asdict(dense))
        return LayerSpec(
            attention=attention,
            feed_forward=dense,
            norm_eps=1e-6,
            norm_placement=placement,
            norm_type=norm_type,
            norm_unit_offset=offset,
        )
    groups, per_group = pick.choice([1, 2, 4]), pick.choice([2, 3, 16, 64])
    topk_group = pick.randint(1, groups)
    router = RouterSpec(
        hidden_size=width,
        num_experts=groups * per_group,
        top_k=pick.randint(1, min(topk_group * per_group, 12)),
        scoring=pick.choice(["sigmoid", "softmax"]),
        bias=pick.random() < 0.3,
        group_rank_experts=pick.choice([1, 2]),
        n_group=groups,
        topk_group=topk_group,
        norm_topk_prob=pick.random() < 0.5,
        routed_scaling_factor=2.5,
        correction_bias=pick.random() < 0.7,
        correction_bias_at=pick.choice(["router", "mixture"]),
    )
    parallel = None
    if placement == "around" and norm_type == "rms_norm" and pick.random() < 0.5:
        parallel = mlp(pick.choice([1, 24, 1000]), bias)
        router = structs.replace(router, learned_scales=True, bias=False, routed_scaling_factor=1.0)
        router = structs.replace(router, correction_bias_at="router")
    shared, expert_size = None if parallel else pick.choice([None, 8, 2048]), pick.choice([8, 64, 512])
    clamped = ClampedMLPSpec(hidden_size=width, intermediate_size=expert_size, alpha=1.7, limit=7.0)
    mixture = MixtureOfExpertsSpec(
        router=router,
        expert=mlp(expert_size) if pick.random() < 0.7 else clamped,
        shared_experts=None if shared is None else mlp(shared),
        shared_expert_gate=shared is not None and pick.random() < 0.5,
        weighs_inputs=pick.random() < 0.3,
    )
    return LayerSpec(
        attention=attention,
        feed_forward=mixture,
        norm_eps=1e-6,
        norm_placement=placement,
        norm_type=norm_type,
        norm_unit_offset=offset,
        parallel_mlp=parallel,
        output_scale=pick.random() < 0.3,
    )


def divisible(layer: LayerSpec) -> LayerSpec:
    """The layer, or one without what tensor parallelism does not divide."""
    if layer.parallel_mlp is None:
        return layer
    assert isinstance(layer.feed_forward, MixtureOfExpertsSpec)
    router = structs.replace(layer.feed_forward.router, learned_scales=False)
    return structs.replace(layer, parallel_mlp=None, feed_forward=structs.replace(layer.feed_forward, router=router))


def widened(layer: LayerSpec, ranks: int) -> LayerSpec:
    """The layer with so many times the heads and the intermediate sizes, which that many ranks can divide."""
    heads = {"num_attention_heads": layer.attention.num_attention_heads * ranks}
    if isinstance(layer.attention, GroupedQueryAttentionSpec):
        heads["num_key_value_heads"] = layer.attention.num_key_value_heads * ranks

    def wider(mlp: Any) -> Any:
        return structs.replace(mlp, intermediate_size=mlp.intermediate_size * ranks)

    block = layer.feed_forward
    if isinstance(block, MixtureOfExpertsSpec):
        shared = block.shared_experts and wider(block.shared_experts)
        block = structs.replace(block, expert=wider(block.expert), shared_experts=shared)
    else:
        block = wider(block)
    return structs.replace(layer, attention=structs.replace(layer.attention, **heads), feed_forward=block)


def random_division(pick: random.Random, seed: int) -> tuple[ModelSpec, Layout]:
    """A model of such layers, and a layout of tp or of ep that divides them; that of ep if there are experts."""
    layer = random_layer(pick)
    tp, ep = pick.choice([2, 4, 8]), 1
    if isinstance(layer.feed_forward, MixtureOfExpertsSpec) and pick.random() < 0.7:
        of_layer = [ranks for ranks in (2, 4, 8, 16) if layer.feed_forward.router.num_experts % ranks == 0]
        tp, ep = (1, pick.choice(of_layer)) if of_layer else (tp, 1)
    spec = random_model(pick, widened(layer if tp == 1 else divisible(layer), tp), seed)
    layout = Layout(
        dp=1,
        fsdp=ep,
        zero=1,
        tp=tp,
        ep=ep,
        sequence_parallel=pick.random() < 0.6,
        expert_imbalance=pick.choice([1.0, 1.0, 1.5, 2.3]),
    )
    return structs.replace(spec, vocab_size=spec.vocab_size * tp), structs.replace(layout, num_gpus=layout.ranks)


def random_model(pick: random.Random, layer: LayerSpec, seed: int) -> ModelSpec:
    """A model of one to three such layers, and up to two more that predict further tokens."""
    predictions, offset = pick.randint(0, 2), pick.random() < 0.3
    return ModelSpec(
        name=f"random {seed}",
        model_type="deepseek_v3",
        vocab_size=pick.choice([2, 1000]),
        hidden_size=layer.hidden_size,
        layer_runs=(LayerRun(layer=layer, count=pick.randint(1, 3)),),
        norm_eps=1e-6,
        tie_word_embeddings=pick.random() < 0.5,
        sequence_length=None,
        sequence_length_source=None,
        mtp_layers=(layer,) * predictions,
        norm_type="rms_norm" if predictions or offset else layer.norm_type,
        norm_unit_offset=offset,
        learned_positions=None if predictions else pick.choice([None, 4096]),
        embedding_scale=pick.choice([1.0, 8.0]),
        final_logit_softcap=pick.choice([None, 30.0]),
    )
