"""The spec of one decoder layer, and of runs of equal layers. Torch-free."""

from collections.abc import Iterable

from torch_models.spec.attention import AttentionSpec, GroupedQueryAttentionSpec
from torch_models.spec.base import Spec
from torch_models.spec.choices import ModelRecompute, NormPlacement, NormType, Recompute
from torch_models.spec.feed_forward import FeedForwardSpec, GatedMLPSpec, MixtureOfExpertsSpec


class LayerSpec(Spec, frozen=True, kw_only=True):
    """One decoder layer: attention, then feed-forward, each with its norms and a residual connection.

    `norm_placement` is ``before`` for x + block(norm(x)), ``after`` for x + norm(block(x)), ``around`` for
    x + norm(block(norm(x))).

    With a `parallel_mlp` the feed-forward part is the sum of this MLP and of the mixture of experts in `feed_forward`
    (Gemma-4). Each has a norm of its own after it, and the experts one before them too; the router reads the residual
    stream. `output_scale` multiplies the layer's output by one stored number, which no gradient updates.
    """

    attention: AttentionSpec
    feed_forward: FeedForwardSpec
    norm_eps: float
    norm_placement: NormPlacement = "before"
    norm_type: NormType = "rms_norm"
    norm_unit_offset: bool = False  # norms multiply by 1 + weight; only RMSNorm
    parallel_mlp: GatedMLPSpec | None = None
    output_scale: bool = False
    mark: str | None = None  # tells the layer from others of its model in its `kind`, where no size does
    recompute: Recompute | None = None  # in training; None: as the model's other layers, see `with_recompute`

    def __post_init__(self) -> None:
        assert self.norm_type == "rms_norm" or not self.norm_unit_offset
        mixture = self.feed_forward if isinstance(self.feed_forward, MixtureOfExpertsSpec) else None
        assert (self.parallel_mlp is not None) == (mixture is not None and mixture.router.learned_scales)
        if self.parallel_mlp is not None:
            assert mixture is not None and mixture.shared_experts is None
            assert mixture.router.correction_bias_at == "router"
            assert (self.norm_placement, self.norm_type) == ("around", "rms_norm")

    @property
    def kind(self) -> str:
        """``dense`` or ``moe``, then what else tells the layers of a model apart.

        ``_window_<size>`` or ``_chunk_<size>`` if the attention has one, and the `mark`: ``_no_rope`` if, unlike in
        other layers, queries and keys are not rotated. ``_recomputed`` stands last, where only some layers are computed
        again in training.
        """
        kind = "moe" if isinstance(self.feed_forward, MixtureOfExpertsSpec) else "dense"
        window = "" if self.window is None else f"_window_{self.window}"
        chunk = "" if self.chunk is None else f"_chunk_{self.chunk}"
        mark = "" if self.mark is None else f"_{self.mark}"
        return f"{kind}{window}{chunk}{mark}{'_recomputed' if self.recompute == 'full' else ''}"

    def recompute_in(self, model: ModelRecompute) -> Recompute:
        """What is recomputed of this layer in a model that is trained with `model`: of a number, what the layer says.

        A layer of a model that is trained with a number must come from `with_recompute`.
        """
        if self.recompute is not None:
            return self.recompute
        assert not isinstance(model, int), "a layer that is marked by its place in the model"
        return model

    @property
    def window(self) -> int | None:
        """Positions that a token attends to, itself included; None for all positions up to it."""
        return self.attention.window if isinstance(self.attention, GroupedQueryAttentionSpec) else None

    @property
    def chunk(self) -> int | None:
        """Positions of a chunk, within which alone a token attends; None if the sequence is not divided."""
        return self.attention.chunk if isinstance(self.attention, GroupedQueryAttentionSpec) else None

    @property
    def shares_key_value_heads(self) -> bool:
        """Whether several query heads have one key and value head."""
        attention = self.attention
        return (
            isinstance(attention, GroupedQueryAttentionSpec)
            and attention.num_attention_heads > attention.num_key_value_heads
        )

    @property
    def hidden_size(self) -> int:
        """The width of the residual stream."""
        return self.attention.hidden_size


class LayerRun(Spec, frozen=True, kw_only=True):
    """`count` consecutive equal layers."""

    layer: LayerSpec
    count: int


def runs_of(layers: Iterable[LayerSpec]) -> tuple[LayerRun, ...]:
    """Return `layers` in their order, with equal neighbours joined into one run."""
    runs: list[tuple[LayerSpec, int]] = []
    for layer in layers:
        if runs and (layer is runs[-1][0] or layer == runs[-1][0]):
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((layer, 1))
    return tuple(LayerRun(layer=layer, count=count) for layer, count in runs)
