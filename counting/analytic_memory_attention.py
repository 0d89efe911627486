"""The life of the tensors of attention and of a norm, in closed form; analytic_memory.py runs a whole layer."""

from counting.lifetimes import BOOL, HALF, SINGLE, Lifetimes
from torch_models.spec import AttentionSpec, GroupedQueryAttentionSpec, Kernels, MultiHeadLatentAttentionSpec

FLASH_RANDOM_STATE = 24  # dropout's seed and offset, which the kernel returns though there is no dropout
EFFICIENT_RANDOM_STATE = 16
EFFICIENT_ROW_BLOCK = 32  # the kernel rounds its rows of log-sum-exp up to this


def norm_memory(
    memory: Lifetimes,
    out: str,
    tokens: int,
    width: int,
    kernels: Kernels,
    *,
    kept: bool = True,
    gaps: bool = False,
    unit_offset: bool = False,
) -> None:
    """RMSNorm of rows of `width`; `kept`: backward needs the output; `gaps`: the rows are a part of longer ones."""
    rows = tokens * width
    born = memory.keep if kept else memory.new
    if kernels == "fused":  # keeps its input, which is born elsewhere, and 1 / rms
        if unit_offset:
            memory.keep(one_plus_weight=HALF * width)
        memory.keep(inverse_rms=SINGLE * tokens)
        if gaps:
            memory.new(without_gaps=HALF * rows)
        born(**{out: HALF * rows})
        if gaps:
            memory.free("without_gaps")
        memory.free("inverse_rms")
        if unit_offset:
            memory.free("one_plus_weight")
        return
    memory.keep(fp32=SINGLE * rows)
    memory.new(square=SINGLE * rows)
    memory.new(mean=SINGLE * tokens)
    memory.free("square")
    memory.new(mean_plus_eps=SINGLE * tokens)
    memory.free("mean")
    memory.keep(inverse_rms=SINGLE * tokens)
    memory.free("mean_plus_eps")
    if unit_offset:
        memory.keep(scaled=SINGLE * rows)
        memory.new(fp32_weight=SINGLE * width)
        memory.keep(one_plus_weight=SINGLE * width)
        memory.free("fp32_weight")
        memory.new(product=SINGLE * rows)
        memory.free("scaled", "one_plus_weight")
        born(**{out: HALF * rows})
        memory.free("product", "fp32", "inverse_rms")
        return
    memory.new(scaled=SINGLE * rows)
    memory.keep(rounded=HALF * rows)
    memory.free("scaled")
    born(**{out: HALF * rows})
    memory.free("rounded", "fp32", "inverse_rms")


def attention_memory(memory: Lifetimes, spec: AttentionSpec, tokens: int, kernels: Kernels, *, keep_out: bool) -> None:
    """From the normed input to `attention_out`."""
    if isinstance(spec, GroupedQueryAttentionSpec):
        heads_per_group = spec.num_attention_heads // spec.num_key_value_heads
        names = _grouped_projections(memory, spec, tokens, kernels)
        query_channels, value_channels = spec.head_dim, spec.head_dim
        grouped: GroupedQueryAttentionSpec | None = spec
    else:
        heads_per_group, grouped = 1, None
        names = _latent_projections(memory, spec, tokens, kernels)
        query_channels, value_channels = spec.qk_nope_head_dim + spec.qk_rope_head_dim, spec.v_head_dim
    heads = spec.num_attention_heads
    if kernels == "eager":
        names += _eager_core(memory, tokens, heads, query_channels, value_channels, heads_per_group, grouped)
    elif grouped and (grouped.window or grouped.logit_softcap or grouped.sinks):
        memory.keep(attended=HALF * tokens * heads * value_channels, logsumexp=SINGLE * heads * tokens)
        memory.free("logsumexp")
        names += ("attended",)
    else:
        names += _fused_core(memory, tokens, heads, query_channels, value_channels)
    (memory.keep if keep_out else memory.new)(attention_out=HALF * tokens * spec.hidden_size)
    memory.free(*names)


def _rotate(memory: Lifetimes, out: str, channels: int, *, kept: bool) -> None:
    """Rotary embedding of `channels` numbers: two halves, each a sum of two products with the angles, joined."""
    half = HALF * channels // 2
    for member in ("first", "second"):
        memory.new(by_cos=half)
        memory.new(by_sin=half)
        memory.new(**{member: half})
        memory.free("by_cos", "by_sin")
    (memory.keep if kept else memory.new)(**{out: 2 * half})
    memory.free("first", "second")


def _grouped_projections(
    memory: Lifetimes, spec: GroupedQueryAttentionSpec, tokens: int, kernels: Kernels
) -> tuple[str, ...]:
    """Query, key and value, which the core keeps; the eager core repeats shared keys and values, and keeps those."""
    repeated = kernels == "eager" and spec.num_attention_heads > spec.num_key_value_heads
    for name, heads in (("query", spec.num_attention_heads), ("key", spec.num_key_value_heads)):
        channels = tokens * heads * spec.head_dim
        if spec.query_key_norm:
            (memory.keep if kernels == "fused" else memory.new)(projected=HALF * channels)
            rows = tokens * heads if spec.query_key_norm == "head" else tokens
            norm_memory(memory, "normed_heads", rows, channels // rows, kernels, kept=False)
            memory.free("projected")
            memory.rename("normed_heads", "projected")
        else:
            memory.new(projected=HALF * channels)
        kept = name == "query" or not repeated
        if spec.rotary.dim == spec.head_dim:
            _rotate(memory, name, channels, kept=kept)
        else:  # the other channels pass, and are joined to the rotated ones
            _rotate(memory, "rotated", tokens * heads * spec.rotary.dim, kept=False)
            (memory.keep if kept else memory.new)(**{name: HALF * channels})
            memory.free("rotated")
        memory.free("projected")
    (memory.new if repeated else memory.keep)(value=HALF * tokens * spec.num_key_value_heads * spec.head_dim)
    return "query", "key", "value"


def _latent_projections(
    memory: Lifetimes, spec: MultiHeadLatentAttentionSpec, tokens: int, kernels: Kernels
) -> tuple[str, ...]:
    """Query and key, and the expansion of the latent that holds the value beside the key's own channels."""
    heads, rope = spec.num_attention_heads, spec.qk_rope_head_dim
    query_row = heads * (spec.qk_nope_head_dim + rope)
    latent = memory.keep if kernels == "fused" else memory.new  # the fused norm keeps its input, the eager one a copy

    if spec.q_lora_rank is None:
        memory.new(projected=HALF * tokens * query_row)
    else:
        latent(query_latent=HALF * tokens * spec.q_lora_rank)
        norm_memory(memory, "normed_latent", tokens, spec.q_lora_rank, kernels)
        memory.free("query_latent")
        memory.new(projected=HALF * tokens * query_row)
        memory.free("normed_latent")
    _rotate(memory, "rotated", tokens * heads * rope, kept=False)
    memory.keep(query=HALF * tokens * query_row)
    memory.free("rotated", "projected")

    latent(latent=HALF * tokens * (spec.kv_lora_rank + rope))
    norm_memory(memory, "normed_latent", tokens, spec.kv_lora_rank, kernels, gaps=tokens > 1)
    memory.keep(expanded=HALF * tokens * heads * (spec.qk_nope_head_dim + spec.v_head_dim))
    memory.free("normed_latent")
    _rotate(memory, "rotated", tokens * rope, kept=False)
    memory.keep(key=HALF * tokens * query_row)
    memory.free("rotated", "latent")
    return "query", "key", "expanded"


def _fused_core(
    memory: Lifetimes, tokens: int, heads: int, query_channels: int, value_channels: int
) -> tuple[str, ...]:
    """Flash attention, or the memory-efficient kernel for unequal head sizes: the output and a log-sum-exp per row."""
    if query_channels == value_channels:
        logsumexp, state = SINGLE * heads * tokens, FLASH_RANDOM_STATE
    else:
        padded = -(-tokens // EFFICIENT_ROW_BLOCK) * EFFICIENT_ROW_BLOCK
        logsumexp, state = (SINGLE * heads * padded if memory.grad else 0), EFFICIENT_RANDOM_STATE
    memory.keep(attended=HALF * tokens * heads * value_channels, logsumexp=logsumexp, state=state)
    memory.free("logsumexp", "state")
    return ("attended",)


def _eager_core(
    memory: Lifetimes,
    tokens: int,
    heads: int,
    query_channels: int,
    value_channels: int,
    heads_per_group: int,
    spec: GroupedQueryAttentionSpec | None,
) -> tuple[str, ...]:
    """Scores, mask and probabilities in memory, each T x T in every head; `spec` where it has options of its own."""
    square = tokens * tokens
    if heads_per_group > 1:
        memory.keep(repeated_key=HALF * tokens * heads * query_channels)
        memory.keep(repeated_value=HALF * tokens * heads * value_channels)
    memory.new(product=HALF * heads * square)
    memory.new(scores=HALF * heads * square)
    memory.free("product")
    if spec and spec.logit_softcap:
        memory.new(ratio=HALF * heads * square)
        memory.keep(tanh=HALF * heads * square)
        memory.free("ratio")
        memory.new(capped=HALF * heads * square)
        memory.free("tanh", "scores")
        memory.rename("capped", "scores")
    _hidden_positions(memory, square, windowed=bool(spec and spec.window))
    memory.new(masked_scores=HALF * heads * square)
    memory.free("scores", "hidden")
    terms = square
    if spec and spec.sinks:
        terms = tokens * (tokens + 1)
        memory.new(with_sinks=HALF * heads * terms)
    memory.new(fp32_scores=SINGLE * heads * terms)
    memory.keep(fp32_probabilities=SINGLE * heads * terms)
    memory.free("fp32_scores")
    if spec and spec.sinks:
        memory.free("with_sinks")
    memory.keep(probabilities=HALF * heads * square)
    # Heads come one after the other; the projection reads a token's heads together, and keeps that copy.
    copied = heads > 1 and tokens > 1
    (memory.new if copied else memory.keep)(attended_by_head=HALF * tokens * heads * value_channels)
    memory.free("probabilities", "fp32_probabilities", "masked_scores")
    if heads_per_group > 1:
        memory.free("repeated_key", "repeated_value")
    if not copied:
        return ("attended_by_head",)
    memory.keep(attended=HALF * tokens * heads * value_channels)
    return "attended_by_head", "attended"


def _hidden_positions(memory: Lifetimes, square: int, *, windowed: bool) -> None:
    """The mask of the future, and of what lies before the window; kept by the masking of the scores."""
    memory.new(ones=BOOL * square)
    (memory.new if windowed else memory.keep)(hidden=BOOL * square)
    memory.free("ones")
    if windowed:
        memory.new(ones=BOOL * square)
        memory.new(before_window=BOOL * square)
        memory.free("ones")
        memory.keep(hidden_in_all=BOOL * square)
        memory.free("hidden", "before_window")
        memory.rename("hidden_in_all", "hidden")
