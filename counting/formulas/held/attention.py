"""Bytes that attention holds for backward, its input included: one formula per spec type."""

from functools import singledispatch

from counting.formulas.held.core import chosen_held, eager_core_held, fused_core_held
from counting.formulas.held.forward_pass import ForwardPass, norm_held
from torch_models.spec import (
    AttentionSpec,
    GroupedQueryAttentionSpec,
    MultiHeadLatentAttentionSpec,
)


@singledispatch
def attention_held(spec: AttentionSpec, run: ForwardPass) -> int:
    """Return bytes that attention holds, its input included.

    With selective recompute the core holds only its inputs and its output (Korthikanti et al. 2022, §5).
    """
    raise AssertionError(f"no formula of what {type(spec).__name__} holds")


@attention_held.register
def _(spec: GroupedQueryAttentionSpec, run: ForwardPass) -> int:
    """Projections, norms of queries and keys, rotation, core, output projection; biases and rotation hold nothing.

    - x: the input of the three projections, for their weights' gradients;
    - norms: of queries and keys, per head or over all heads of a token. Rotation creates new tensors, so queries and
      keys before rotation are held only as inputs of these norms; the same holds of values before their norm. Where
      keys are the values too, both norms have one input. Norms after the rotation hold what is rotated, and their
      outputs are the queries and keys;
    - factors: with a temperature, one number for each position, for the gradient of the queries;
    - query, key, value: the factors of the core's two products. Eager products of grouped heads hold keys and values
      repeated for each query head;
    - core: fused, the log-sum-exp of each row of scores, from which backward computes the probabilities again, and the
      random state (Dao 2023, arXiv 2307.08691, §3.1); eager, see `eager_core_held`;
    - attended: the input of the output projection, for its weight's gradient; the backward of a fused core needs it
      too.
    """
    heads, key_heads, channels = spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim
    x = run.width * run.tokens * spec.hidden_size
    norms = 0
    if spec.query_key_norm == "head":
        offset = spec.norm_unit_offset
        norms = sum(norm_held(run.tokens * each, channels, run, unit_offset=offset) for each in (heads, key_heads))
    elif spec.query_key_norm == "width":
        norms = sum(norm_held(run.tokens, each * channels, run) for each in (heads, key_heads))
    elif spec.query_key_norm == "l2":
        norms = sum(norm_held(run.tokens * each, channels, run, has_weight=False) for each in (heads, key_heads))
    if spec.value_norm:
        norms += norm_held(run.tokens * key_heads, channels, run, has_weight=False)
    if spec.keys_as_values and run.norms_hold_input:
        norms -= run.width * run.tokens * key_heads * channels
    factors = run.width * run.micro_batch.length if spec.temperature else 0
    core, held_heads = 0, key_heads
    if run.recompute != "selective" and run.kernels == "eager":
        held_heads = heads
        capped = spec.logit_softcap is not None
        core = eager_core_held(heads, run.micro_batch, run.width, softcap=capped, sinks=spec.sinks)
    elif run.recompute != "selective":
        core = fused_core_held(spec, run.micro_batch)
    query = attended = run.width * run.tokens * heads * channels
    key = value = run.width * run.tokens * held_heads * channels
    return x + norms + factors + query + key + value + core + attended


@attention_held.register
def _(spec: MultiHeadLatentAttentionSpec, run: ForwardPass) -> int:
    """Projections to latents, their norms, expansion to heads, rotation, core, output projection.

    - x: the input of the projections to the latents, for their weights' gradients;
    - query_latent: the norm of the query latent, and the normed latent, the input of the expansion; 0 if queries are
      projected directly;
    - latent: the same for keys and values. A norm that holds its input also holds the rotary channels that all heads
      share, before their rotation, because both are parts of one tensor;
    - query, key: factors of the scores; each is a new tensor, joined from non-rotary and rotary channels;
    - expanded: the values, which share one tensor with the non-rotary channels of the keys; eager products over several
      sequences hold a copy of the values alone, ordered by head;
    - core, attended: as in grouped-query attention;
    - chosen: the keys that an indexer chooses, for the core's backward; an eager core has made a mask of them. The
      indexer itself has no backward and holds nothing.
    """
    heads, tokens = spec.num_attention_heads, run.tokens
    x = run.width * tokens * spec.hidden_size
    query_latent = 0
    if spec.q_lora_rank is not None:
        query_latent = norm_held(tokens, spec.q_lora_rank, run) + run.width * tokens * spec.q_lora_rank
    shared_channels = run.width * tokens * spec.qk_rope_head_dim if run.norms_hold_input else 0
    latent = norm_held(tokens, spec.kv_lora_rank, run) + shared_channels + run.width * tokens * spec.kv_lora_rank
    query = key = run.width * tokens * heads * spec.qk_head_dim
    expanded = run.width * tokens * heads * (spec.qk_nope_head_dim + spec.v_head_dim)
    attended = run.width * tokens * heads * spec.v_head_dim
    core = 0
    if run.recompute != "selective" and run.kernels == "eager" and min(heads, *run.micro_batch) > 1:
        expanded = run.width * tokens * heads * spec.v_head_dim
    if run.recompute != "selective" and run.kernels == "eager":
        core = eager_core_held(heads, run.micro_batch, run.width, chosen=spec.indexer is not None)
    elif run.recompute != "selective":
        core = fused_core_held(spec, run.micro_batch)
    in_mask = run.recompute != "selective" and run.kernels == "eager"
    chosen = 0 if in_mask else chosen_held(spec, run.micro_batch)
    return x + query_latent + latent + query + key + expanded + core + attended + chosen
