"""The decoder of a `ModelSpec`: embedding, layers, final norm, with Hugging Face's parameter names.

`MultiTokenPredictionLayer` is the additional layer that DeepSeek-V3 trains to predict further tokens. The head is in
language_model.py; the legend of dimension letters is in layers.py.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from torch_models.errors import ArgumentError
from torch_models.first_values import OwnFirstValues
from torch_models.modules.attention.grouped_queries import GroupedQueryAttention
from torch_models.modules.attention.latents import MultiHeadLatentAttention
from torch_models.modules.layers import MLP, GatedMLP, Linear, RMSNorm, RotaryTables, norm_module, rotary_tables
from torch_models.modules.moe import MixtureOfExperts, Router, experts_module
from torch_models.modules.recompute import Recomputed, router_shapes, run
from torch_models.spec import (
    AttentionSpec,
    FeedForwardSpec,
    GatedMLPSpec,
    GroupedQueryAttentionSpec,
    Kernels,
    LayerSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    ModelSpec,
    NormPlacement,
    Recompute,
)


def attention_module(spec: AttentionSpec, kernels: Kernels) -> nn.Module:
    """Return the attention module of `spec`."""
    if isinstance(spec, GroupedQueryAttentionSpec):
        return GroupedQueryAttention(spec, kernels)
    return MultiHeadLatentAttention(spec, kernels)


def feed_forward_module(spec: FeedForwardSpec) -> nn.Module:
    """Return the feed-forward module of `spec`."""
    if isinstance(spec, GatedMLPSpec):
        return GatedMLP(spec)
    return MLP(spec) if isinstance(spec, MLPSpec) else MixtureOfExperts(spec)


# Names in checkpoints of a layer's norms: before and after attention, before and after the feed-forward.
NORM_NAMES: dict[NormPlacement, tuple[str | None, str | None, str | None, str | None]] = {
    "before": ("input_layernorm", None, "post_attention_layernorm", None),
    "after": (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    "around": (
        "input_layernorm",
        "post_attention_layernorm",
        "pre_feedforward_layernorm",
        "post_feedforward_layernorm",
    ),
}


# The same of the two branches of a layer with a parallel MLP: after the MLP, before and after the experts.
BRANCH_NORM_NAMES = ("post_feedforward_layernorm_1", "pre_feedforward_layernorm_2", "post_feedforward_layernorm_2")


class _Block(Recomputed):
    """The parts of a decoder layer, under their names in checkpoints."""

    self_attn: nn.Module
    mlp: nn.Module
    layer_scalar: Tensor

    def __init__(self, spec: LayerSpec, kernels: Kernels) -> None:
        super().__init__()
        self.spec = spec
        before_attention, after_attention, before_mlp, after_mlp = NORM_NAMES[spec.norm_placement]
        norm = partial(norm_module, spec, kernels)
        after_dense, before_experts, after_experts = BRANCH_NORM_NAMES
        feed_forward: tuple[tuple[str | None, Callable[[], nn.Module]], ...] = (
            ("mlp", partial(feed_forward_module, spec.feed_forward)),
        )
        if spec.parallel_mlp is not None:
            assert isinstance(spec.feed_forward, MixtureOfExpertsSpec)
            feed_forward = (
                ("mlp", partial(GatedMLP, spec.parallel_mlp)),
                (after_dense, norm),
                ("router", partial(Router, spec.feed_forward.router, kernels)),
                (before_experts, norm),
                ("experts", partial(experts_module, spec.feed_forward)),
                (after_experts, norm),
            )
        parts: tuple[tuple[str | None, Callable[[], nn.Module]], ...] = (
            (before_attention, norm),
            ("self_attn", partial(attention_module, spec.attention, kernels)),
            (after_attention, norm),
            (before_mlp, norm),
            *feed_forward,
            (after_mlp, norm),
        )
        for name, make in parts:
            if name is not None:
                self.add_module(name, make())
        if spec.output_scale:
            self.register_buffer("layer_scalar", torch.ones(1))

    def set_recompute(self, recompute: Recompute) -> None:
        """Set what backward computes again, unless the spec of the layer says so."""
        super().set_recompute(self.spec.recompute or recompute)

    def _run(self, function: Callable[..., Tensor], *args: Any) -> Tensor:
        """Run the layer."""
        kept = router_shapes(self.spec) if self.keeps_products else None
        return run(function, *args, recompute=self.recompute_layer, keeps_products=kept)

    def _transform(self, x_BSD: Tensor, rotary: RotaryTables) -> Tensor:
        before_attention, after_attention, before_mlp, after_mlp = NORM_NAMES[self.spec.norm_placement]
        x_BSD = x_BSD + self._norm(after_attention, self.self_attn(self._norm(before_attention, x_BSD), rotary))
        if self.spec.parallel_mlp is None:
            x_BSD = x_BSD + self._norm(after_mlp, self.mlp(self._norm(before_mlp, x_BSD)))
        else:
            x_BSD = x_BSD + self._norm(after_mlp, self._both_branches(x_BSD))
        # A tensor without dimensions leaves the dtype of the residual stream as it is.
        return x_BSD * self.layer_scalar.squeeze() if self.spec.output_scale else x_BSD

    def _both_branches(self, x_BSD: Tensor) -> Tensor:
        """The MLP and the mixture of experts, each between its norms; the router reads the residual stream."""
        before_mlp = NORM_NAMES[self.spec.norm_placement][2]
        after_dense, before_experts, after_experts = BRANCH_NORM_NAMES
        dense_BSD = self._norm(after_dense, self.mlp(self._norm(before_mlp, x_BSD)))
        x_TD = x_BSD.flatten(0, 1)
        routed = self.get_submodule("experts")(self._norm(before_experts, x_TD), *self.get_submodule("router")(x_TD))
        return dense_BSD + self._norm(after_experts, routed.view_as(x_BSD))

    def _norm(self, name: str | None, x_BSD: Tensor) -> Tensor:
        if name is None:
            return x_BSD
        normed: Tensor = self.get_submodule(name)(x_BSD)
        return normed


class DecoderLayer(_Block):
    """Attention, then feed-forward, each with its norms (`norm_placement`) and a residual connection."""

    def forward(self, x_BSD: Tensor, rotary: RotaryTables) -> Tensor:
        """(B, S, D) -> (B, S, D); `rotary` are the tables of this layer's `spec.attention.rotary`."""
        return self._run(self._transform, x_BSD, rotary)


class MultiTokenProjection(Linear):
    """Projects [embedding; hidden state] to a hidden state, (…, 2D) -> (…, D); the main model has no such layer."""

    component = "mlp"
    quantised = ()  # not quantised in DeepSeek-V3's fp8 checkpoint


class MultiTokenPredictionLayer(_Block):
    """One decoder layer that predicts one token further (DeepSeek-V3, arXiv 2412.19437, §2.2).

    Parameter names are those of the published checkpoint after ``model.layers.<num_hidden_layers + k>.``. The copies of
    embedding and head in that checkpoint are left out; the main model has them. The input is [embedding; hidden state]
    in this order, as in the checkpoint; eq. 21 prints the opposite order.
    """

    def __init__(self, spec: LayerSpec, kernels: Kernels) -> None:
        super().__init__(spec, kernels)
        self.enorm = RMSNorm(spec.hidden_size, spec.norm_eps, kernels)
        self.hnorm = RMSNorm(spec.hidden_size, spec.norm_eps, kernels)
        self.eh_proj = MultiTokenProjection(2 * spec.hidden_size, spec.hidden_size, bias=False)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(spec.hidden_size, spec.norm_eps, kernels)})

    def forward(self, hidden_BSD: Tensor, next_embedding_BSD: Tensor, rotary: RotaryTables) -> Tensor:
        """Return the hidden state from which the shared head computes logits, (B, S, D).

        `hidden_BSD` is the hidden state of the previous depth at each position; `next_embedding_BSD` is the embedding
        of the token that the previous depth should predict.
        """
        return self._run(self._predict, hidden_BSD, next_embedding_BSD, rotary)

    def _predict(self, hidden_BSD: Tensor, next_embedding_BSD: Tensor, rotary: RotaryTables) -> Tensor:
        joined = torch.cat((self.enorm(next_embedding_BSD), self.hnorm(hidden_BSD)), dim=-1)
        out: Tensor = self.shared_head["norm"](self._transform(self.eh_proj(joined), rotary))
        return out


class Decoder(nn.Module):
    """Embedding, layers and final norm: token ids (B, S) -> hidden states (B, S, D).

    `layers` has the layers of the main model and after them one for each of `mtp_layers`, numbered on as in Hugging
    Face's checkpoints.
    """

    has_embedding = has_norm = True  # False in stages of a pipeline that lack them

    tables_dtype: torch.dtype | None = None  # of the rotary tables; None: that of the embedding
    # Where ranks divide the positions: how many ranks, and what leaves this rank's rows of a table of all positions.
    context_ranks = 1
    own_rows: Callable[[Tensor], Tensor] | None = None

    def __init__(self, spec: ModelSpec, kernels: Kernels, mtp_layers: Sequence[LayerSpec] = ()) -> None:
        super().__init__()
        self.embed_tokens = TokenEmbedding(spec.vocab_size, spec.hidden_size, spec.learned_positions)
        self.layers = nn.ModuleList(DecoderLayer(layer, kernels) for layer in spec.layers)
        self.layers.extend(MultiTokenPredictionLayer(layer, kernels) for layer in mtp_layers)
        self.norm = norm_module(spec, kernels)
        self.embedding_scale = spec.embedding_scale
        self.num_layers = spec.num_layers
        of_layers = [layer.attention.rotary for layer in (*spec.layers, *mtp_layers)]
        self.rotary_specs = tuple(dict.fromkeys(of_layers))
        index_of = {rotary: index for index, rotary in enumerate(self.rotary_specs)}
        self.tables_of_layers = tuple(index_of[rotary] for rotary in of_layers)  # indices in `rotary_specs`

    def forward(
        self,
        token_ids_BS: Tensor,
        tables: Sequence[RotaryTables] | None = None,
        *,
        depth: int = 0,
        hidden_BSD: Tensor | None = None,
        residual_BSD: Tensor | None = None,
    ) -> Tensor:
        """Return the hidden states from which the head predicts at the prediction depth `depth`, (B, S) -> (B, S, D).

        Depth 0 is the main model. Depth k is the multi-token-prediction layer k: `hidden_BSD` is what depth k - 1
        returned, and `token_ids_BS` has the token that it predicts at each position. `tables` is the result of
        `rotary_tables`, computed here if it is None.

        A stage of a pipeline that lacks the embedding gets the residual stream before its first layer, `residual_BSD`,
        and one that lacks the final norm returns the one after its last layer.
        """
        if tables is None:
            tables = self.rotary_tables(token_ids_BS)
        x_BSD = self.embed(token_ids_BS) if residual_BSD is None else residual_BSD
        if depth > 0:
            index = self.num_layers + depth - 1
            out: Tensor = self.layers[index](hidden_BSD, x_BSD, tables[self.tables_of_layers[index]])
            return out
        for index in range(self.num_layers):
            x_BSD = self.layers[index](x_BSD, tables[self.tables_of_layers[index]])
        if not self.has_norm:
            return x_BSD
        normed: Tensor = self.norm(x_BSD)
        return normed

    @property
    def mtp_layers(self) -> list[nn.Module]:
        """The multi-token-prediction layers."""
        return list(self.layers)[self.num_layers :]

    def embed(self, token_ids_BS: Tensor) -> Tensor:
        """The residual stream before the first layer, (B, S) -> (B, S, D)."""
        x_BSD: Tensor = self.embed_tokens(token_ids_BS)
        return x_BSD if self.embedding_scale == 1 else x_BSD * self.embedding_scale

    def rotary_tables(self, token_ids_BS: Tensor) -> tuple[RotaryTables, ...]:
        """Return the tables of each of `rotary_specs`, for the length of the sequences and this rank's positions."""
        length, device, dtype = token_ids_BS.shape[1] * self.context_ranks, token_ids_BS.device, self.dtype
        tables = tuple(rotary_tables(rotary, length, device, dtype) for rotary in self.rotary_specs)
        own = self.own_rows
        return tables if own is None else tuple((own(each[0]), own(each[1])) if each else () for each in tables)

    @property
    def dtype(self) -> torch.dtype:
        """That of the residual stream, and of the rotary tables."""
        if self.tables_dtype is not None:
            return self.tables_dtype
        weight: Tensor = self.embed_tokens.weight if self.has_embedding else next(self.parameters())
        return weight.dtype


class TokenEmbedding(OwnFirstValues, nn.Embedding):
    """`nn.Embedding` that leaves its weight uninitialised, as `Linear` does; it may add a learned table of positions.

    The table is a part of this module, so that what gathers, divides or leaves out the embedding does it with both.
    """

    component = "word_embedding"
    # Where ranks divide the vocabulary: looks up the words of this rank's part of the weight.
    over_ranks: Callable[[Tensor, Tensor], Tensor] | None = None

    def __init__(self, num_embeddings: int, embedding_dim: int, positions: int | None = None) -> None:
        # A weight that is given is not drawn.
        nn.Embedding.__init__(self, num_embeddings, embedding_dim, _weight=torch.empty(num_embeddings, embedding_dim))
        self.positions = None if positions is None else PositionTable(positions, embedding_dim)

    def forward(self, token_ids: Tensor) -> Tensor:
        """(…) -> (…, D)."""
        if self.positions is None:
            return self._look_up(token_ids)
        embedded: Tensor = self._look_up(token_ids) + self.positions(token_ids.shape[-1])
        return embedded

    def _look_up(self, token_ids: Tensor) -> Tensor:
        if self.over_ranks is not None:
            return self.over_ranks(token_ids, self.weight)
        embedded: Tensor = super().forward(token_ids)
        return embedded


class PositionTable(OwnFirstValues):
    """A learned vector for each position, (P, D), which is added to the embedded token there (GPT-2)."""

    component = "positional_embedding"
    # Where ranks divide the positions: how many ranks, and what leaves this rank's rows.
    context_ranks = 1
    own_rows: Callable[[Tensor], Tensor] | None = None

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(positions, width))

    def forward(self, length: int) -> Tensor:
        """Return the rows of a sequence's `length` positions, (S, D).

        Raises `ArgumentError` for more positions than there are rows.
        """
        positions, whole = len(self.weight), length * self.context_ranks
        if whole > positions:
            rule = f"must be at most {positions}: the table of positions has no more rows"
            raise ArgumentError("sequence_length", whole, rule)
        rows = self.weight[:whole]
        return rows if self.own_rows is None else self.own_rows(rows)
