"""The sentences that say how numbers are counted, each once; reports print them, rows carry them. See DESIGN §4."""

import re

# --- FLOPs and parameters ----------------------------------------------------------------------------------------

FLOPS_NOTE = (
    "A multiply-add is 2 FLOPs; matrix products only; attention on the full square of positions, or within its window, "
    "its chunks or the keys that are chosen."
)
CAUSAL_FLOPS_NOTE = (
    "A multiply-add is 2 FLOPs; matrix products only; attention without the keys in the future; an indexer scores all "
    "keys."
)
FULL_SQUARE_NOTE = (
    "A multiply-add is 2 FLOPs; matrix products only; attention on the full square of positions, also with a window, "
    "chunks or chosen keys."
)
FORWARD_NOTE = "One forward pass over one micro-batch."
SCAN_FLOPS_NOTE = "The matrix products of the published chunked algorithm, by formula; attention's FLOPs have them."
ELEMENTWISE_NOTE = "Elementwise operations of scans and short convolutions, as transformers runs them; in no FLOPs."
MODEL_FLOPS_NOTE = (
    "Model FLOPs: three forward passes, an indexer's once, by the model's own count, without recomputation."
)
HARDWARE_FLOPS_NOTE = "Hardware FLOPs: all that is executed, forward, backward and recomputed."
BUDGET_FLOPS_NOTE = "FLOPs that the GPU-hours pay for: hours x dense 16-bit peak x MFU."
PARAMETERS_NOTE = (
    "Numbers that the optimiser updates, and those of an indexer, which no gradient reaches; multi-token prediction "
    "and correction biases stand beside them."
)
FROZEN_NOTE = "Parameters of an indexer: no gradient reaches them, and the optimiser does not update them."
RANK_PARAMETERS_NOTE = "Numbers that the optimiser updates on the ranks, without those of an indexer."
ACTIVE_NOTE = "Parameters that one token uses."
# How papers count training FLOPs: the names of `counting.cost.conventions` -> in words.
FLOP_CONVENTIONS = {
    "6N": "6 N",
    "6N_full_attention": "6 N' + full attention",
    "6N_causal_attention": "6 N' + causal attention",
    "own": "the model's own count",
}
CONVENTION_NOTE = (
    "N: active parameters, those that one token uses. N': N without the input embedding, which is a lookup. Causal: "
    "half of attention's square. Only the model's own count includes multi-token prediction."
)
MODULE_FLOPS_NOTE = (
    "A multiply-add is 2 FLOPs; one forward and one backward pass on the inputs that were given, as executed."
)

# --- Memory ------------------------------------------------------------------------------------------------------

LAYER_MEMORY_NOTE = (
    "The worst moment of one layer's forward pass, in 16 bits, with activations checkpointed at the layers' boundaries."
)
STEP_MEMORY_NOTE = (
    "Bytes that the step allocates at the worst moment, without workspaces in kernels and the allocator's rounding."
)
MODEL_STATES_NOTE = "Parameters, gradients and optimiser state in the formats of the setup's precision."
RESERVED_BYTES_NOTE = "An estimate of what torch's caching allocator reserves."
FITS_NOTE = (
    "Needed: the most bytes that are reserved or, where that is not worked out, allocated; with the CUDA context and, "
    "of a rank, its communicators. Capacity: of one device, as the driver reports it if that is known."
)
STATES_NOTE = (
    "GPUs at least: the smallest number whose memory holds parameters, gradients and optimiser state, sharded evenly. "
    "Memory is what the driver reports if that is known, else the vendor's figure with one GB taken as 2^30 bytes."
)
MODULE_MEMORY_NOTE = (
    "Bytes of all tensors that live at once in one forward and backward pass, without the allocator's rounding."
)
COLLECTIVES_NOTE = "Of one step; bytes are totals over all calls, into and out of the collective of one rank."

# --- Time and money ----------------------------------------------------------------------------------------------

MFU_NOTE = (
    "MFU is relative to the dense peak of the 16-bit training dtype. FLOPs are the model's own count: three forward "
    "passes, an indexer's once, without recomputation."
)
HFU_NOTE = "HFU is relative to the dense peak of the 16-bit training dtype. FLOPs are those that are executed."
STEP_TIME_NOTE = (
    "Seconds of one step, on the rank of the pipeline with the most work; of communication, what nothing hides."
)
BAND_NOTE = "Low to high: the errors of 8 of 10 published runs or, where steps were measured, the spread of these."
BOUND_NOTE = "The bound: no run is faster."
BILL_NOTE = (
    "GPU-hours are those of one run without failures. The cost does not include failed runs, evaluation, storage and "
    "people."
)
ENERGY_NOTE = (
    "MWh: GPU-hours x the power limit that is set, else the board's, an upper bound for the boards alone; hosts, "
    "network and cooling are not included."
)
PEAK_NOTE = "Dense, of one GPU, without sparsity: in 16 bits; attainable: of FP8 where the run's precision is that."
PRICE_NOTE = "USD for one hour of one GPU: as given, else that of the catalogue."
POWER_NOTE = "The power limit of one board: the one that is set, else the board's own."
SPEED_NOTE = "Tokens of the run, or of one step, / the seconds that it takes without failures."
STEPS_NOTE = "Tokens of the run / tokens of the global batch, rounded up."

# --- Laws, published figures, machines -----------------------------------------------------------------------------

LOSS_NOTE = "Loss: in nats per token, on the data that the law was fitted to."
OPTIMUM_NOTE = "The lowest loss of the scaling law at C = 6 N D."
SIX_ND_NOTE = "By the scaling law, at C = 6 N D."
SERVING_NOTE = "Training is 6 N D FLOPs, and serving 2 N for each token."
LAW_NOTE = "Of the loss in N parameters and D tokens: E + A / N^alpha + B / D^beta, in nats per token."
BEYOND_NOTE = "How far outside the runs that the law is fitted to, in powers of ten; 0 within them."
RESIDUAL_NOTE = (
    "Logarithm of the loss of the run / that of the law: above 0: a worse run; a median is of absolute ones."
)
RUNS_NOTE = "As the runs that the law is fitted to say it."
TOKENS_OF_MODEL_NOTE = "The number of tokens for which a model of this size is compute-optimal by the scaling law."
DESIGN_NOTE = "Parameters of the design / those of the target - 1."
ROUTING_NOTE = "If dense: every routed expert runs for every token, and adds 6 FLOPs for each parameter."
AGREES_NOTE = "This project's figure / the stated one - 1."
TIME_ERROR_NOTE = "Estimated / measured - 1: below 0 where the estimate is too fast."
CALIBRATION_NOTE = "Each measured step is predicted by the scale that the other rows give."
MACHINE_NOTE = "Measured on the machine at hand."
SETTING_NOTE = "A setting of the step."

# What of a result, as "class.quantity" -> its sentence; the first that matches.
_GOVERNED = tuple(
    (re.compile(pattern), sentence)
    for pattern, sentence in (
        (r"(Setup|Layout|MicroBatch)\.", SETTING_NOTE),
        (r"Calibration\.|ScaledRow\.|\.median_error$", CALIBRATION_NOTE),
        (r"Found\w+\.", MACHINE_NOTE),
        (r"ModuleFlops\.", MODULE_FLOPS_NOTE),
        (r"ModuleMemory\.", MODULE_MEMORY_NOTE),
        (
            r"(ErrorSummary|ExaminedRatio|ExaminedThroughput)\.\w*(median|tenth|ninetieth|error|estimated)",
            TIME_ERROR_NOTE,
        ),
        (r"relative_difference", AGREES_NOTE),
        (r"(Architecture|Design)\.relative_error", DESIGN_NOTE),
        (r"(Law|Mixture)OnModel\.(optimal_tokens|tokens_over_optimal)", TOKENS_OF_MODEL_NOTE),
        (r"if_dense|saved_by_routing", ROUTING_NOTE),
        (r"RankCollective\.", COLLECTIVES_NOTE),
        (r"(GpuOption|BudgetPlan|Design|LawsSideBySide)\.training_flops$", BUDGET_FLOPS_NOTE),
        (r"ScalingLaw\.(parameter|token)_(coefficient|exponent)$", LAW_NOTE),
        (r"orders_beyond$|\.beyond_(parameters|tokens)$", BEYOND_NOTE),
        (r"(^|_|\.)residual$", RESIDUAL_NOTE),
        (r"(DataLimited|InferenceAware|LawRow|MixtureOptimum|Optimum|ServedModel)\.\w*loss$", LOSS_NOTE),
        (
            r"FittedRun\.(parameters|tokens|training_flops|loss)|IsoflopBudget|FittedOptimum\.training_flops|flops_per_parameter_and_token",
            RUNS_NOTE,
        ),
        (r"(ServedModel|InferenceAware|ServingOnModel)\.\w*(flops|tokens|added|saved|share)", SERVING_NOTE),
        (r"(DataLimited|MixtureOptimum)\.\w*flops|(LawOptimum|LawRow|ApproachOptimum|Optimum)\.", SIX_ND_NOTE),
        (r"(DataLimited|MixtureOptimum|ServedModel|OptimumIntervals)\.\w*(parameters|tokens)", SIX_ND_NOTE),
        (r"(ScalingLaw|MixtureBudget)\.fitted_", RUNS_NOTE),
        (r"BudgetPlan\.(optimal|tokens_per_parameter)", OPTIMUM_NOTE),
        (r"(Fit|Remedy)\.|\.step_fits$", FITS_NOTE),
        (r"ReservedParts\.\w*allocated", STEP_MEMORY_NOTE),
        (r"reserved_bytes$|ReservedParts\.|PoolOfStream\.", RESERVED_BYTES_NOTE),
        (r"LayerAnalysis\.peak_memory|LayerMemory\.", LAYER_MEMORY_NOTE),
        (r"^(Layer)?Analysis\.\w*forward_flops_causal", f"{FORWARD_NOTE} {CAUSAL_FLOPS_NOTE}"),
        (r"flops_causal", CAUSAL_FLOPS_NOTE),
        (r"forward_flops_full_attention", f"{FORWARD_NOTE} {FULL_SQUARE_NOTE}"),
        (r"^(Layer)?Analysis\.\w*forward_flops|attention_core_flops", f"{FORWARD_NOTE} {FLOPS_NOTE}"),
        (r"\.scan_flops", f"{FORWARD_NOTE} {SCAN_FLOPS_NOTE}"),
        (r"\.elementwise_operations", f"{FORWARD_NOTE} {ELEMENTWISE_NOTE}"),
        (r"\.hardware_flops", HARDWARE_FLOPS_NOTE),
        (r"\.model_flops|\.training_flops|flops_per_token", MODEL_FLOPS_NOTE),
        (r"flops|attention_core|skipped_by_causality", FLOPS_NOTE),
        (r"\.(\w*fewest_gpus)$", STATES_NOTE),
        (r"state_bytes|moment_bytes|beside_states|update_bytes", MODEL_STATES_NOTE),
        (r"bytes", STEP_MEMORY_NOTE),
        (r"\.active", ACTIVE_NOTE),
        (r"ParameterTotals\.(mtp_)?frozen", FROZEN_NOTE),
        (r"(RankAnalysis|Undivided)\.\w*parameters", RANK_PARAMETERS_NOTE),
        (r"parameters|linear_weights|correction_bias", PARAMETERS_NOTE),
        (r"\.hfu$", HFU_NOTE),
        (r"bound_", BOUND_NOTE),
        (r"mfu", MFU_NOTE),
        (r"\.energy_mwh$", ENERGY_NOTE),
        (r"(peak_dense|attainable)_tflop_per_s$", PEAK_NOTE),
        (r"price_usd_per_hour$", PRICE_NOTE),
        (r"power(_limit)?_watts$", POWER_NOTE),
        (r"\.tokens_per_second(_per_gpu)?$", SPEED_NOTE),
        (r"TrainingRun\.steps$", STEPS_NOTE),
        (r"gpu_hours|cost|days", BILL_NOTE),
        (r"loss$", LOSS_NOTE),
        (r"StepTime\.(low|high)_seconds$", BAND_NOTE),
        (r"StepTime\.seconds|TimeBreakdown\.", STEP_TIME_NOTE),
    )
)

# (Class, component) -> its sentence, where components of one quantity are counted in different ways.
_GOVERNED_COMPONENTS = {
    ("AttentionCore", "causal"): f"{FORWARD_NOTE} {CAUSAL_FLOPS_NOTE}",
    ("AttentionCore", "full_square"): f"{FORWARD_NOTE} {FULL_SQUARE_NOTE}",
}


def governing_sentence(of: str, quantity: str, component: str) -> str:
    """The sentence that says how `quantity` of the class `of` is counted; empty if there is none."""
    if (of, component) in _GOVERNED_COMPONENTS:
        return _GOVERNED_COMPONENTS[of, component]
    name = f"{of}.{quantity}"
    return next((sentence for pattern, sentence in _GOVERNED if pattern.search(name)), "")
