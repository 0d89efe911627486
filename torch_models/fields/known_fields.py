"""Config fields that belong to no single family: aliases, fields without influence, switches with a fixed value."""

import re

# Names in configs of courses and tools -> Hugging Face's names. Some are GPT-2's, which handwritten configs use.
ALIASES = {
    "num_layers": "num_hidden_layers",
    "n_layer": "num_hidden_layers",
    "n_embd": "hidden_size",
    "n_head": "num_attention_heads",
    "n_positions": "max_position_embeddings",
    "dtype": "torch_dtype",
    "experts_per_token": "num_experts_per_tok",
    "sliding_window_size": "sliding_window",
    "num_mtp_layers": "num_nextn_predict_layers",
}

# The three names of the number of routed experts; each family uses one and accepts the others as aliases.
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")

# Sizes in published files that a family may not declare -> the standard fields; the first that is known is repeated.
PER_HEAD = "hidden_size / num_attention_heads"
EXPANDED = "expand × hidden_size"  # the channels of a state space
CONVOLVED = "hidden_size, which the short convolution keeps"
REPEATS: dict[str, tuple[str, ...]] = {
    "head_dim": (PER_HEAD,),
    "kv_channels": ("head_dim", PER_HEAD),
    "attention_head_size": ("head_dim", PER_HEAD),
    "attention_head_dim": ("head_dim", PER_HEAD),
    "d_head": ("head_dim", PER_HEAD),
    "num_key_value_heads": ("num_key_value_heads", "num_attention_heads"),
    "num_kv_heads": ("num_key_value_heads", "num_attention_heads"),
    "num_query_groups": ("num_key_value_heads", "num_attention_heads"),
    "n_kv_heads": ("num_key_value_heads", "num_attention_heads"),
    "n_head_kv": ("num_key_value_heads", "num_attention_heads"),
    "n_heads": ("num_attention_heads",),
    "num_heads": ("num_attention_heads",),
    "n_layers": ("num_hidden_layers",),
    "d_model": ("hidden_size",),
    "embedding_size": ("hidden_size",),
    "embedding_dim": ("hidden_size",),
    "word_embed_proj_dim": ("hidden_size",),
    "n_inner": ("intermediate_size",),
    "d_inner": (EXPANDED, "intermediate_size"),
    "intermediate_size": (EXPANDED,),
    "block_dim": ("hidden_size",),
    "conv_dim": (CONVOLVED,),
    "conv_dim_out": (CONVOLVED,),
    "lora_rank": ("adapter_rank",),
    "ffn_dim": ("intermediate_size",),
    "ffn_hidden_size": ("intermediate_size",),
    "padded_vocab_size": ("vocab_size",),
}

# Fields that name the activation -> what they call a feed-forward with a gate of the activation of `hidden_act`.
ACTIVATION_FIELDS = {"activation", "activation_function", "hidden_activation", "act_fn", "mlp_hidden_act"}
GATED = {"silu": ("silu", "swish", "swiglu"), "gelu": ("gelu", "geglu"), "gelu_pytorch_tanh": ("gelu_pytorch_tanh",)}

_TOKENS = "names a token, not a size"
_PROMPT = "begins every text that is generated"
_TOOL = "is a note of the tool that trained the model"
_GROUPS = "says which devices share the experts"
_GENERATION = "steers generation, not training"
_BOOKKEEPING = "says who wrote the file"
_OUTPUTS = "asks for outputs"
_LABELS = "labels of a classifier"
_TOKENIZER = "the tokenizer is not part of the model"
_FRAMEWORK = "of another framework"
_BALANCE = "weighs a further loss, which multiplies no matrices"
_CORRECTION = "a bias of the router that no optimiser updates is a buffer"
_CAPACITY = "no expert drops tokens here"
_KERNEL = "chooses a kernel; the analysis states its own"
_LENGTH = "is a length, not a size of the model"
_PIECES = "splits products without changing their sum"
_DEVICES = "says how the model was spread over devices"
_FIRST_VALUES = "sets first values, not shapes"
_STORED = "says how the checkpoint is stored; the trained model is the same"
DROPOUT = "is a setting of training; the analysis trains without dropout"
_JITTER = "is noise on a router's input in training; the analysis trains without it"
LAYER_DROP = ("layerdrop", "decoder_layerdrop")  # chances that a layer is left out: no layer is
_ORDER = "says whether a gate multiplies before or after a norm, which multiplies no matrices"
_PRECISION = "sets the format of some numbers; the analysis states its own"

# Fields that change no count of parameters, FLOPs or bytes, each with the reason.
IRRELEVANT_FIELDS: dict[str, str] = {
    "architectures": "repeats the family",
    "auto_map": "points to remote code, which is never run",
    "quantization_config": _STORED,
    "quantization": _STORED,
    "compression_config": _STORED,
    "quant_method": _STORED,
    "torch_dtype": "counts are for 16-bit numbers, whatever the checkpoint is stored in",
    "gradient_checkpointing": "the analysis states its own",
    "torchscript": "asks for another execution, not another model",
    "use_bfloat16": _FRAMEWORK,
    "seq_aux": "chooses the balance loss, which multiplies no matrices",
    "label_smoothing": _BALANCE,
    "use_routing_bias": _CORRECTION,
    "use_expert_bias": _CORRECTION,
    "moe_use_aux_free": _CORRECTION,
    "moe_router_enable_expert_bias": _CORRECTION,
    "moe_capacity": _CAPACITY,
    "moe_capacity_factor": _CAPACITY,
    "moe_token_drop_policy": _CAPACITY,
    "moe_drop_tokens": _CAPACITY,
    "capacity_factor": _CAPACITY,
    "expert_capacity": _CAPACITY,
    "moe_router_dtype": _PRECISION,
    "router_dtype": _PRECISION,
    "residual_in_fp32": _PRECISION,
    "fp32_residual_connection": _PRECISION,
    "attention_softmax_in_fp32": _PRECISION,
    "scale_attention_softmax_in_fp32": _PRECISION,
    "moe_router_force_load_balancing": "spreads tokens evenly, as the counts assume",
    "routed_layer_names": _BOOKKEEPING,
    "mamba_ssm_dtype": _PRECISION,
    "norm_before_gate": _ORDER,
    "time_step_init_scheme": _FIRST_VALUES,
    "time_step_scale": _FIRST_VALUES,
    "expert_dtype": _STORED,
}


def _same_reason(reason: str, names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), reason)


IRRELEVANT_FIELDS |= _same_reason(
    _BOOKKEEPING,
    "model_name name_or_path transformers_version model_version license author tags library_name "
    "finetuning_task base_model base_model_name_or_path torchao_version vllm_version mergekit_version training_args "
    "trained_by model_id revision num_steps global_step",
)
IRRELEVANT_FIELDS |= _same_reason(
    _GENERATION,
    "generation_config use_cache cache_implementation bad_words_ids task_specific_params do_sample "
    "early_stopping temperature top_k top_p typical_p min_p max_length min_length max_new_tokens min_new_tokens "
    "num_beams num_beam_groups num_return_sequences diversity_penalty length_penalty repetition_penalty "
    "presence_penalty frequency_penalty encoder_no_repeat_ngram_size no_repeat_ngram_size "
    "exponential_decay_length_penalty remove_invalid_values renormalize_logits num_logits_to_keep logits_to_keep "
    "use_cache_quantization use_cache_kernel max_inference_batch_size chat_template chat_format suppress_tokens "
    "begin_suppress_tokens guidance_scale penalty_alpha epsilon_cutoff eta_cutoff assistant_model kv_cache_scheme "
    "mamba_ssm_cache_dtype inference_state_dtype inference_runner max_batch_size pad_key_length "
    "pre_allocate_kv_cache validate_runner_input max_inference_chunksize",
)
IRRELEVANT_FIELDS |= _same_reason(
    _OUTPUTS,
    "output_attentions output_hidden_states output_router_logits return_dict return_dict_in_generate output_scores "
    "output_logits return_last_states return_token_timestamps keys_to_ignore_at_inference output_past "
    "predict_special_tokens",
)
IRRELEVANT_FIELDS |= _same_reason(
    _LABELS,
    "id2label label2id problem_type num_labels classifier_activation classifier_bias label_names class_num pool_type "
    "dense_list add_classification_head",
)
IRRELEVANT_FIELDS |= _same_reason(
    _TOKENIZER,
    "tokenizer_class tokenizer_model tokenizer_name tokenizer_path add_bos_token add_eos_token org_vocab_size",
)
IRRELEVANT_FIELDS |= _same_reason(
    _FRAMEWORK, "transformers.js_config tf_legacy_loss onnx_config mlx_config gguf_config use_tf"
)
IRRELEVANT_FIELDS |= _same_reason(_PIECES, "pretraining_tp chunk_size_feed_forward slow_but_exact loss_chunk_size")
IRRELEVANT_FIELDS |= _same_reason(
    _DEVICES,
    "ep_size tp_size moe_ep_size tensor_model_parallel_size tensor_parallel_degree pipeline_parallel_degree fsdp "
    "sequence_parallel expert_parallel device_map init_device max_memory weight_block_size use_parallel_embedding",
)
IRRELEVANT_FIELDS |= _same_reason(
    _LENGTH,
    "n_ctx seq_length seq_len max_seq_len max_seq_length model_max_length context_length block_size_tokens "
    "initial_context_length",
)
IRRELEVANT_FIELDS |= _same_reason(
    _BALANCE, "router_z_loss aux_loss_alpha router_bias_update_rate router_bias_update_speed"
)
IRRELEVANT_FIELDS |= _same_reason(
    _KERNEL,
    "attn_implementation attn_impl use_sdpa use_kernel use_kernels use_mamba_kernels use_triton use_cuda_graph "
    "use_mem_eff_path masked_softmax_fusion bias_dropout_fusion skip_bias_add skip_bias_add_qkv use_te "
    "use_xformers use_liger_kernel use_grouped_mm reorder_and_upcast_attn fused_add_norm",
)

# Fields of `IRRELEVANT_FIELDS` and of the names below that hold yes, no or a name: a number would mean something else.
_CHOICES = {_KERNEL, _TOOL, _PROMPT, _GROUPS, _ORDER}
IRRELEVANT_FIELDS |= {"prefix": _PROMPT, "moe_group": _GROUPS}

_OF_LOSS = "alpha|coeff?|coefficient|weight|factor|lambda|scale|scaling(_factor)?|type|func|free|enabled"

# Names of the same kind that differ from file to file -> the reason why they change no count.
_IRRELEVANT_NAMES: tuple[tuple[str, str], ...] = (
    (r".*(dropout|pdrop|drop_prob|drop_path|layerdrop)(_(p|prob|probability|rate|ratio))?", DROPOUT),
    ("router_jitter_noise", _JITTER),
    (rf"(.*_)?(aux|balance|balancing|z|router|mtp)_?loss(_({_OF_LOSS}))?", _BALANCE),
    (
        r".*_token_(ids?|index)|(.*_)?(bo|eo)[a-z]_(id|index)|(.*_)?(pad|sep|cls|unk|mask|start|end|newline|init)_id",
        _TOKENS,
    ),
    (rf"(.*_)?load_balanc(e|ing)(_loss)?(_({_OF_LOSS}))?", _BALANCE),
    (r"unsloth_.*", _TOOL),
    (
        r"(.*_)?initializer_(range|factor|std|cutoff_factor|scale|gain|type|method)|(.*_)?init_std"
        r"|init_(method|cutoff_factor|scale|range)(_std)?|.*_init_scale|(.*_)?use_xavier_init",
        _FIRST_VALUES,
    ),
    (r"summary_(activation|type|use_proj|proj_to_labels|(first|last)_dropout)", _LABELS),
    (
        r"attn_implementation_(internal|autoset)"
        r"|(use_)?(flash|fused)_(attn|attention|rms_?norm|mlp|swiglu|rope|rotary)(_(v?[123]|emb|embedding|kernel))?",
        _KERNEL,
    ),
)
_IRRELEVANT_PATTERNS = tuple((re.compile(names), reason) for names, reason in _IRRELEVANT_NAMES)


def irrelevance(field: str) -> str | None:
    """Return why the field changes no count of any model; None if it may."""
    if field in IRRELEVANT_FIELDS:
        return IRRELEVANT_FIELDS[field]
    return next((reason for names, reason in _IRRELEVANT_PATTERNS if names.fullmatch(field)), None)


def changes_no_count(field: str, value: object) -> str | None:
    """Return why an undeclared field with this value changes no count of any model; None if it may."""
    why = irrelevance(field) or COUNT_FREE_FIELDS.get(field)
    return None if why in _CHOICES and not isinstance(value, bool | str | None) else why


_SCALE = "scales numbers, which multiplies no matrices"
_CHOICE = "says which experts a token visits and how they weigh, not how many"
_EPSILON = "keeps a norm from dividing by zero"
TURNING = "turns keys and queries, which multiplies no matrices"

# Fields that some families declare, and that change no count of a model whose family does not, with the reason.
COUNT_FREE_FIELDS: dict[str, str] = {"max_sequence_length": _LENGTH}
COUNT_FREE_FIELDS |= _same_reason(
    TURNING,
    "original_max_position_embeddings rope_theta rope_scaling rope_parameters rope_ratio rope_base rope_interleave "
    "rope_interleaved rope_local_base_freq rope_mscale rope_type indexer_rope_interleave local_rope_theta "
    "global_rope_theta swa_rope_theta rotary_emb_base rotary_base freq_allocation no_rope_layer_interval "
    "no_rope_layers use_dynamic_ntk use_mrope",
)
COUNT_FREE_FIELDS |= _same_reason(
    _SCALE,
    "mla_scale_q_lora mla_scale_kv_lora use_logn_attn embedding_multiplier logits_scaling residual_multiplier "
    "attention_multiplier logit_scale",
)
COUNT_FREE_FIELDS |= _same_reason(_EPSILON, "layer_norm_epsilon layer_norm_eps rms_norm_eps norm_eps block_norm_eps")
COUNT_FREE_FIELDS |= _same_reason(
    _CHOICE,
    "scoring_func topk_method topk_group n_group norm_topk_prob routed_scaling_factor router_scoring_func score_func "
    "score_function route_norm route_scale num_expert_groups num_expert_group num_limited_groups expert_selection_fn "
    "group_limited_greedy moe_norm_topk_prob moe_router_topk_scaling_factor moe_gate_act moe_router_score_function "
    "moe_router_activation_func moe_renormalize use_grouped_topk",
)
COUNT_FREE_FIELDS["offset_alibi"] = "only the family's first code read it"

# Fields with the share of each head's channels that is rotated. transformers' modules multiply no other matrices for
# it; the modules here are built for it, and a family that declares none of these fields rotates all channels.
ROTATED_SHARES = (
    *("partial_rotary_factor", "rotary_pct", "rotary_dim", "rotary_percent", "rope_pct", "rope_percent"),
    "attn_rotary_emb",
)

# Activations of one number; those with a gate, as swiglu, say that the feed-forward has a further matrix.
ACTIVATIONS = _same_reason(
    "multiplies no matrices",
    "relu relu2 relu6 gelu gelu_new gelu_fast gelu_10 gelu_python gelu_python_tanh gelu_pytorch_tanh gelu_accurate "
    "quick_gelu silu swish mish tanh sigmoid leaky_relu elu selu laplace linear",
)

# Architecture switches of transformers' base class and of published files; only the value given here is accepted.
FIXED_FIELDS: dict[str, object] = {
    "is_decoder": False,
    "is_encoder_decoder": False,
    "is_causal": True,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    "is_llama_config": True,
    "causal": True,
    "bidirectional": False,
    "use_bidirectional_attention": False,
}

# The value of `use_bidirectional_attention` in Gemma-4 that changes nothing of the text decoder, and why.
IMAGES_ALONE = "vision"
OF_IMAGES = "of the tokens of images; those of text see the ones before them"

# What `head_dim` may mean in multi-head latent attention, where transformers derives it and nothing reads it.
LATENT_HEAD_SIZES = ("qk_rope_head_dim", "qk_head_dim", "v_head_dim")

# Fields that have a meaning only where another field, a switch, is on.
SWITCHED_BY = {"cla_share_factor": "use_cla", "alibi_bias_max": "alibi"}

# Fields that some families declare; in the others only this value agrees with the model that is built.
NEUTRAL_VALUES: dict[str, object] = {
    "partial_rotary_factor": 1.0,
    "rotary_pct": 1.0,
    "moe_layer_freq": 1,
    "decoder_sparse_step": 1,
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "compression_ratio": 1.0,
    "rotary_scaling_factor": 1.0,
}
