"""Config fields that belong to no single family: aliases, fields without influence, switches with a fixed value."""

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

_TOKENS = "names a token, not a size"
_GENERATION = "steers generation, not training"
_BOOKKEEPING = "says who wrote the file"

# Fields that change no count of parameters, FLOPs or bytes, each with the reason.
IRRELEVANT_FIELDS: dict[str, str] = {
    "generation_config": _GENERATION,
    "_source": "says where the file's numbers come from",
    "_name_or_path": _BOOKKEEPING,
    "architectures": "repeats the family",
    "auto_map": "points to remote code, which is never run",
    "transformers_version": _BOOKKEEPING,
    "torch_dtype": "counts are for 16-bit numbers, whatever the checkpoint is stored in",
    "quantization_config": "says how the checkpoint is stored; the trained model is the same",
    "initializer_range": "sets first values, not shapes",
    "use_cache": _GENERATION,
    "cache_implementation": _GENERATION,
    "transformers.js_config": "of another framework",
    "unsloth_fixed": _BOOKKEEPING,
    "_attn_implementation_autoset": "chooses a kernel; the analysis states its own",
    "bos_token_id": _TOKENS,
    "eos_token_id": _TOKENS,
    "pad_token_id": _TOKENS,
    "sep_token_id": _TOKENS,
    "decoder_start_token_id": _TOKENS,
    "forced_bos_token_id": _TOKENS,
    "forced_eos_token_id": _TOKENS,
    "begin_suppress_tokens": _TOKENS,
    "suppress_tokens": _TOKENS,
    "bad_words_ids": _GENERATION,
    "pretraining_tp": "splits products without changing their sum",
    "ep_size": "says how experts were spread over devices",
    "router_aux_loss_coef": "weighs a balance loss, which multiplies no matrices",
    "aux_loss_alpha": "weighs a balance loss, which multiplies no matrices",
    "seq_aux": "chooses the balance loss, which multiplies no matrices",
    "output_attentions": "asks for outputs",
    "output_hidden_states": "asks for outputs",
    "output_router_logits": "asks for outputs",
    "return_dict": "asks for outputs",
    "return_dict_in_generate": "asks for outputs",
    "output_scores": "asks for outputs",
    "gradient_checkpointing": "the analysis states its own",
    "id2label": "labels of a classifier",
    "label2id": "labels of a classifier",
    "problem_type": "labels of a classifier",
    "num_labels": "labels of a classifier",
    "finetuning_task": "labels of a classifier",
    "task_specific_params": _GENERATION,
    "tokenizer_class": "the tokenizer is not part of the model",
    "prefix": _GENERATION,
    "torchscript": "asks for another execution, not another model",
    "chunk_size_feed_forward": "splits products without changing their sum",
    "do_sample": _GENERATION,
    "early_stopping": _GENERATION,
    "temperature": _GENERATION,
    "top_p": _GENERATION,
    "typical_p": _GENERATION,
    "max_length": _GENERATION,
    "min_length": _GENERATION,
    "num_beams": _GENERATION,
    "num_beam_groups": _GENERATION,
    "num_return_sequences": _GENERATION,
    "diversity_penalty": _GENERATION,
    "length_penalty": _GENERATION,
    "repetition_penalty": _GENERATION,
    "encoder_no_repeat_ngram_size": _GENERATION,
    "no_repeat_ngram_size": _GENERATION,
    "exponential_decay_length_penalty": _GENERATION,
    "remove_invalid_values": _GENERATION,
    "tf_legacy_loss": "of another framework",
    "use_bfloat16": "of another framework",
}

# Architecture switches of transformers' base class and of published files; only the value given here is accepted.
FIXED_FIELDS: dict[str, object] = {
    "is_decoder": False,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "cross_attention_hidden_size": None,
    "tie_encoder_decoder": False,
    "pruned_heads": {},
    "is_llama_config": True,
    "rope_interleaved": False,
    "use_mrope": False,
    "use_bidirectional_attention": False,
}
