"""Names of config fields that decide the architecture, in any family, each with what it describes.

Such a field is never ignored: where a family does not declare it and it is switched on, the model is another one. The
names are those of published configs and of transformers' configuration classes.
"""

_BY_MEANING = {
    "sizes of the residual stream or the vocabulary": """
        hidden_size n_embd d_model dim model_dim embedding_size embedding_dim emb_dim embed_dim
        word_embed_proj_dim input_embedding_size output_embedding_size embedding_hidden_size vocab_size
        padded_vocab_size unpadded_vocab_size type_vocab_size audio_vocab_size decoder_vocab_size num_codebooks
        block_dim pad_vocab_size_multiple
    """,
    "the number of layers": """
        num_hidden_layers num_layers n_layer n_layers num_decoder_layers decoder_layers encoder_layers
        num_encoder_layers num_blocks num_layers_per_stack
    """,
    "the number and the size of attention heads": """
        num_attention_heads n_head n_heads num_heads attention_heads num_key_value_heads num_kv_heads n_kv_heads
        n_head_kv multi_query multi_query_attention multi_query_group_num num_query_groups head_dim d_head
        dim_head kv_channels attention_head_size attention_head_dim attention_hidden_size v_head_dim qk_head_dim
        swa_head_dim swa_v_head_dim swa_num_attention_heads swa_num_key_value_heads global_head_dim
        num_global_key_value_heads num_attention_heads_per_layer num_key_value_heads_per_layer
    """,
    "the width of the feed-forward": """
        intermediate_size ffn_dim ffn_hidden_size n_inner d_ff dff dim_ff d_inner feed_forward_size
        decoder_ffn_dim ffn_config ffn_dim_multiplier expansion_ratio multiple_of intermediate_multiple_size
        use_double_wide_mlp intermediate_size_mlp block_ffn_dim_multiplier block_multiple_of
        block_auto_adjust_ff_dim block_ff_dim block_configs
    """,
    "another feed-forward": """
        mlp_type gated_mlp use_gated_mlp use_gated_activation use_glu use_swiglu ffn_type
        activation_sparsity_pattern swiglu_limit swiglu_alpha
    """,
    "a mixture of experts": """
        num_experts num_local_experts n_routed_experts moe_num_experts n_experts num_routed_experts
        num_experts_per_tok num_experts_per_token moe_topk moe_k moe_top_k experts_per_token top_k_experts
        num_selected_experts moe_intermediate_size expert_intermediate_size moe_ffn_hidden_size
        expert_ffn_hidden_size moe_latent_size moe_layer_freq moe_layers moe_layers_enum moe_every_n_layers
        moe_layer_interval moe_layer_start_index moe_layer_end_index first_k_dense_replace num_dense_layers
        dense_intermediate_size prefix_dense_intermediate_size decoder_sparse_step mlp_only_layers
        mlp_layer_types interleave_moe_layer_step expert_layer_period expert_layer_offset is_moe
        enable_moe_block use_moe moe_config use_mixture_of_experts zero_expert_num zero_expert_type
        moe_layers_indices moe_layer_indices moe_dec_mode
    """,
    "shared experts": """
        n_shared_experts num_shared_experts moe_num_shared_experts num_shared_expert use_shared_expert
        shared_expert_intermediate_size moe_shared_expert_intermediate_size shared_intermediate_size
        shared_experts_intermediate_size num_experts_shared shared_expert_sink use_mixed_mlp_moe
    """,
    "multi-head latent attention": """
        kv_lora_rank q_lora_rank o_lora_rank qk_nope_head_dim qk_rope_head_dim use_mla mla_config attn_type_mla
    """,
    "layers with a sliding window": """
        sliding_window use_sliding_window sliding_window_size sliding_window_pattern max_window_layers
        window_size attention_window_size local_attention local_window_size window_pattern swa_layers
        sliding_window_layers global_attn_every_n_layers full_attention_interval attention_chunk_size
        prefix_dense_sliding_window_pattern interleaved_sliding_window local_layer_ids
    """,
    "layers of several kinds": """
        layer_types layers_block_type block_types hybrid_layer_pattern hybrid_layer_ids hybrid_override_pattern
        attn_type_list attn_layer_indices attn_layer_period attn_layer_offset full_attn_idxs layer_group_size
        attention_types attn_layers attn_layer_types layer_block_types mixer_types hybrid_block_size
        hybrid_attention_pattern attention_pattern moe_layer_pattern is_hybrid layer_switch
        order_of_interleaved_layers
    """,
    "linear attention": """
        linear_attn_config linear_num_key_heads linear_num_value_heads linear_key_head_dim linear_value_head_dim
        linear_conv_kernel_dim linear_head_dim linear_num_heads short_conv_kernel_size conv_L_cache
        gated_norm_rank use_linear_attention lightning_attention full_attn_alpha_factor linear_attn_alpha_factor
    """,
    "a state space or a recurrence": """
        mamba_d_state mamba_d_conv mamba_expand mamba_n_heads mamba_d_head mamba_n_groups mamba_d_ssm
        mamba_num_heads mamba_head_dim mamba_chunk_size mamba_dt_rank mamba_ngroups n_mamba_heads ssm_state_size
        state_size time_step_rank conv_bias use_conv_bias mamba_conv_bias mamba_proj_bias expand qk_dim_factor
        v_dim_factor ffn_proj_factor conv_kernel conv_kernel_size conv1d_width conv_dim conv_dim_out lru_width
        n_groups mamba_config ssm_cfg use_mamba
    """,
    "sparse attention with an indexer or compressed keys": """
        index_n_heads index_head_dim index_topk indexer_n_heads indexer_head_dim indexer_kv_heads indexer_types
        index_block_size index_topk_blocks index_local_blocks indexer_budget indexer_compress_ratio
        attention_type attn_type attn_config o_groups router_hidden_size cca_time0 cca_time1 compress_rates
        compress_ratio compress_ratios sparse_config sparse_attention_config sparse_attn_config
        attention_sparsity block_sparse use_sparse_attention num_random_blocks nsa_config moba_chunk_size
        moba_topk compression_ratio
    """,
    "layers or heads that share weights, keys or values": """
        num_kv_shared_layers kv_sharing cla_share_factor use_cla share_kv attention_k_eq_v num_mem_blocks
        use_shared_attention_adapter shared_layers share_q_dim num_shared_layers use_share_kv_layers tie_layers
        share_params kv_share_layers
    """,
    "cross attention": """
        cross_attention_layers add_cross_attention cross_attention_hidden_size cross_attn_k
        cross_attention_config num_cross_attention_layers use_cross_attention encoder_hidden_size
    """,
    "another model beside the decoder": """
        vision_config audio_config encoder_config decoder_config text_encoder audio_encoder depth_decoder_config
        patcher_config vq_config speech_config image_config vision_tower mm_vision_tower visual img_processor
        audio_processor thinker_config talker_config projector_hidden_size vision_feature_layer text_config
        audio_encoder_config projector_bias projector_hidden_act backbone_hidden_size image_size patch_size
        num_channels num_mel_bins mm_tokens_per_image global_config encoder_ffn_dim encoder_attention_heads
    """,
    "multi-token prediction": """
        num_nextn_predict_layers num_mtp_layers use_mtp num_mtp_modules mtp_transformer_layers mtp_num_layers
        mtp_num_hidden_layers num_multi_token_prediction_layers mtp_layer_types mtp_layers_block_type
        n_future_tokens n_predict num_predict_tokens mtp_config
    """,
    "several residual streams or other paths beside the layers": """
        hc_mult hc_count hc_lowrank altup_num_inputs laurel_rank hidden_size_per_layer_input
        vocab_size_per_layer_input n_layers_per_attn_res_block ple_layer_ids ple_embed_dim ngram_size
        ngram_vocab_size_base heads_per_ngram ple_conv_kernel_size engram_config ngram task_type_vocab_size
        use_task_id n_langs use_lang_emb H_cycles L_cycles num_recurrences adapter_rank adapter_reduction_factor
        value_residual use_attention_gate attention_gate gating attn_output_gate use_output_gate
        output_gate_type head_wise_attn_gate elementwise_attn_output_gate use_head_wise_attn_gate
    """,
    "biases of projections": """
        attention_bias attn_bias qkv_bias use_qkv_bias add_qkv_bias attn_qkv_bias attention_out_bias
        attention_output_bias mlp_bias use_bias use_bias_in_mlp bias no_bias add_bias_linear linear_bias
        lm_head_bias enable_bias projectors_bias norm_bias decoder_bias
    """,
    "norms of queries and keys, or norms in other places": """
        use_qk_norm qk_norm qk_layernorm use_qk_layernorm qk_layer_norm qk_norm_type use_post_norm
        use_sandwich_norm sandwich_norm parallel_attn use_parallel_residual use_parallel_block parallel_block
        num_ln_in_parallel_attn new_decoder_architecture apply_residual_connection_post_layernorm
        do_layer_norm_before post_norm pre_norm norm_type normalization norm_position layernorm_type
        post_layer_norm
    """,
    "rotation of a part of each head": """
        partial_rotary_factor rotary_pct rotary_dim rotary_percent rope_pct attn_rotary_emb
    """,
    "learned or relative positions": """
        position_embedding_type alibi learned_pos_emb use_learned_position_embeddings rel_extent d_rel
        num_buckets relative_max_distance position_bias_num_buckets axial_pos_embds
    """,
    "soft caps, sinks or scales of attention": """
        attn_logit_softcapping final_logit_softcapping attention_sinks use_attention_sinks learnable_sink
        add_full_attention_sink_bias add_swa_attention_sink_bias attn_sink query_pre_attn_scalar
    """,
    "another activation": "hidden_act hidden_activation",
    "tied or separate embeddings": "tie_word_embeddings tie_encoder_decoder use_embedding_sharing",
    "low-rank or pruned weights of the model": "pruned_heads lora_rank use_lora lora_config low_rank_config",
}

ARCHITECTURE_FIELDS: dict[str, str] = {
    field: meaning for meaning, fields in _BY_MEANING.items() for field in fields.split()
}
