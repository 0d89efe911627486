"""Names of torch's own ops that multiply no matrices, as data.

Only ops that torch does not tag as elementwise, as a reduction or as a view are listed, by the name of the out-of-place
op ("copy" includes `copy_` and `_foreach_copy_`).

These ops are left out on purpose, so that they raise an error and never count 0: contractions of two tensors without a
formula of ours (distances of all pairs, trilinear products, recurrent layers in one kernel, attention in one kernel),
decompositions and solutions of linear systems, Fourier transforms, and products of sparse, packed or quantised
matrices.
"""

_CREATION = """
    arange bartlett_window blackman_window empty empty_like empty_permuted empty_strided eye fft_fftfreq fft_rfftfreq
    from_file full full_like hamming_window hann_window kaiser_window linspace logspace new_empty new_empty_strided
    new_full new_ones new_zeros ones ones_like range scalar_tensor tril_indices triu_indices zeros zeros_like
    _efficientzerotensor _new_zeros_with_same_feature_meta
"""

_RANDOM_NUMBERS = """
    bernoulli binomial cauchy exponential geometric log_normal multinomial native_dropout normal normal_functional
    poisson rand rand_like randint randint_like randn randn_like random randperm rrelu_with_noise
    rrelu_with_noise_backward rrelu_with_noise_functional uniform _cudnn_init_dropout_state _dirichlet_grad
    _fused_dropout _masked_scale _philox_key_fold_in _philox_key_split _philox_normal _philox_uniform _sample_dirichlet
    _standard_gamma _standard_gamma_grad
"""

_MOVEMENT = """
    alias_copy as_strided_scatter block_diag cat channel_shuffle col2im constant_pad_nd copy diag_embed
    diagonal_backward diagonal_copy diagonal_scatter fill flip gather im2col index index_add index_copy index_fill
    index_put index_reduce index_select lift lift_fresh_copy masked_scatter masked_scatter_backward masked_select
    narrow_copy nonzero nonzero_static pixel_shuffle pixel_unshuffle put reflection_pad1d reflection_pad1d_backward
    reflection_pad2d reflection_pad2d_backward reflection_pad3d reflection_pad3d_backward repeat repeat_interleave
    replication_pad1d replication_pad1d_backward replication_pad2d replication_pad2d_backward replication_pad3d
    replication_pad3d_backward resize resize_as roll rot90 scatter scatter_add scatter_reduce segment_reduce
    select_backward select_scatter set slice_backward slice_scatter split_copy split_with_sizes_copy stack take tril
    triu unbind_copy unfold_backward unsafe_split unsafe_split_with_sizes zero _chunk_cat _copy_from
    _copy_from_and_resize _index_put_impl _lazy_clone _pack_padded_sequence _pin_memory _reshape_copy _resize_output
    _segment_reduce_backward _stack _to_copy _unsafe_index _unsafe_index_put _unsafe_masked_index
    _unsafe_masked_index_put_accumulate _unsafe_view
"""

_SORTING_AND_SCANS = """
    bincount bucketize cummax cummin cumprod cumsum hash_tensor histc histogram isin kthvalue logcumsumexp median mode
    nanmedian searchsorted sort topk unique_consecutive unique_dim unique_dim_consecutive _cummax_helper _cummin_helper
    _histogramdd_bin_edges _histogramdd_from_bin_cts _histogramdd_from_bin_tensors _logcumsumexp _unique _unique2
"""

_ELEMENTWISE = """
    celu complex elu_backward floor_divide glu glu_backward glu_backward_jvp glu_jvp hardshrink_backward
    hardsigmoid_backward hardswish hardswish_backward hardtanh_backward leaky_relu_backward linalg_cross
    log_sigmoid log_sigmoid_backward log_sigmoid_forward polar softplus_backward softshrink_backward __and__ __or__
    _add_relu _conj_physical _prelu_kernel _prelu_kernel_backward
"""

_FAKE_QUANTISATION = """
    fake_quantize_per_channel_affine_cachemask fake_quantize_per_tensor_affine_cachemask
    _fake_quantize_learnable_per_channel_affine _fake_quantize_learnable_per_channel_affine_backward
    _fake_quantize_learnable_per_tensor_affine _fake_quantize_learnable_per_tensor_affine_backward
    _fake_quantize_per_tensor_affine_cachemask_tensor_qparams _fused_moving_avg_obs_fq_helper
    _fused_moving_avg_obs_fq_helper_functional
"""

# The fused cells compute only the gates of a recurrent layer; its products are separate ops before them.
_GATES_OF_RECURRENT_CELLS = """
    _thnn_fused_gru_cell _thnn_fused_gru_cell_backward _thnn_fused_lstm_cell _thnn_fused_lstm_cell_backward_impl
"""

_NORMS_AND_SOFTMAX = """
    batch_norm_backward batch_norm_backward_elemt batch_norm_backward_reduce batch_norm_elemt batch_norm_gather_stats
    batch_norm_gather_stats_with_counts batch_norm_stats batch_norm_update_stats cudnn_batch_norm
    cudnn_batch_norm_backward dist miopen_batch_norm miopen_batch_norm_backward native_batch_norm
    native_batch_norm_backward native_group_norm native_group_norm_backward native_layer_norm
    native_layer_norm_backward native_norm renorm trace _aminmax _batch_norm_no_update _batch_norm_with_update
    _batch_norm_with_update_functional _foreach_powsum _fused_rms_norm _fused_rms_norm_backward _log_softmax
    _log_softmax_backward_data _masked_softmax _masked_softmax_backward _native_batch_norm_legit
    _native_batch_norm_legit_functional _native_batch_norm_legit_no_training _safe_softmax _softmax
    _softmax_backward_data _weight_norm_interface _weight_norm_interface_backward
"""

_EMBEDDINGS = """
    embedding embedding_dense_backward embedding_renorm _embedding_bag _embedding_bag_backward
    _embedding_bag_dense_backward _embedding_bag_forward_only
"""

_LOSSES = """
    binary_cross_entropy binary_cross_entropy_backward binary_cross_entropy_with_logits huber_loss huber_loss_backward
    mse_loss mse_loss_backward multi_margin_loss multi_margin_loss_backward multilabel_margin_loss_backward
    multilabel_margin_loss_forward nll_loss2d_backward nll_loss2d_forward nll_loss_backward nll_loss_forward
    smooth_l1_loss smooth_l1_loss_backward soft_margin_loss soft_margin_loss_backward _ctc_loss _ctc_loss_backward
    _cudnn_ctc_loss _use_cudnn_ctc_loss
"""

# Interpolation weights a few neighbours of each point; it is not counted as a matrix product.
_POOLING_AND_INTERPOLATION = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_avg_pool3d_backward adaptive_max_pool2d
    adaptive_max_pool2d_backward adaptive_max_pool3d adaptive_max_pool3d_backward avg_pool1d avg_pool2d
    avg_pool2d_backward avg_pool3d avg_pool3d_backward cudnn_grid_sampler cudnn_grid_sampler_backward
    fractional_max_pool2d fractional_max_pool2d_backward fractional_max_pool3d fractional_max_pool3d_backward
    grid_sampler_2d grid_sampler_2d_backward grid_sampler_3d grid_sampler_3d_backward max_pool2d_backward
    max_pool2d_with_indices max_pool2d_with_indices_backward max_pool3d_with_indices max_pool3d_with_indices_backward
    max_unpool2d max_unpool3d upsample_bicubic2d upsample_bicubic2d_backward upsample_bilinear2d
    upsample_bilinear2d_backward upsample_linear1d upsample_linear1d_backward upsample_nearest1d
    upsample_nearest1d_backward upsample_nearest2d upsample_nearest2d_backward upsample_nearest3d
    upsample_nearest3d_backward upsample_trilinear3d upsample_trilinear3d_backward _adaptive_avg_pool2d
    _adaptive_avg_pool2d_backward _adaptive_avg_pool3d _adaptive_avg_pool3d_backward _grid_sampler_2d_cpu_fallback
    _grid_sampler_2d_cpu_fallback_backward _upsample_bicubic2d_aa _upsample_bicubic2d_aa_backward
    _upsample_bilinear2d_aa _upsample_bilinear2d_aa_backward _upsample_lanczos2d_aa _upsample_lanczos2d_aa_backward
    _upsample_nearest_exact1d _upsample_nearest_exact1d_backward _upsample_nearest_exact2d
    _upsample_nearest_exact2d_backward _upsample_nearest_exact3d _upsample_nearest_exact3d_backward
"""

_OPTIMIZERS = """
    _amp_foreach_non_finite_check_and_unscale _amp_update_scale _fused_adagrad _fused_adam _fused_adamw _fused_sgd
"""

_QUESTIONS_AND_CHECKS = """
    allclose dim is_contiguous is_non_overlapping_and_dense is_pinned is_same_size is_set_to is_strides_like_format
    item numel record_stream size storage_offset stride sym_constrain_range sym_constrain_range_for_size
    sym_is_contiguous sym_numel sym_size sym_storage_offset sym_stride _assert_async _assert_scalar
    _assert_tensor_metadata _functional_assert_async _functional_assert_scalar _functional_sym_constrain_range
    _functional_sym_constrain_range_for_size _fused_sdp_choice _has_same_storage_numel _is_all_true _is_any_true
    _local_scalar_dense _make_dep_token _print
"""

OPS_WITHOUT_PRODUCTS = frozenset(
    " ".join(
        (
            _CREATION,
            _RANDOM_NUMBERS,
            _MOVEMENT,
            _SORTING_AND_SCANS,
            _ELEMENTWISE,
            _FAKE_QUANTISATION,
            _GATES_OF_RECURRENT_CELLS,
            _NORMS_AND_SOFTMAX,
            _EMBEDDINGS,
            _LOSSES,
            _POOLING_AND_INTERPOLATION,
            _OPTIMIZERS,
            _QUESTIONS_AND_CHECKS,
        )
    ).split()
)

# Namespaces outside `aten`: properties of tensors, profiler marks, communication between ranks.
NAMESPACES_WITHOUT_PRODUCTS = frozenset(
    {"prim", "profiler", "c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor", "fsdp"}
)
