"""What the parts of results are called as rows: scopes, quantities and components, by class and field.

A class or field that is not listed has the plain rule: a struct in a field has the field's name as its scope, and a
number the field's name as its quantity.
"""

# Class -> its scope, from its own fields; empty: that of the struct that it is in.
SCOPES = {
    "Analysis": "{name}",
    "Architecture": "design",
    "BeyondCompute": "budget",
    "BudgetOnModel": "{model}",
    "BudgetPlan": "budget",
    "Agreement": "",
    "CalibratedCluster": "calibration of {gpu}",
    "CalibratedStep": "{where}",
    "Calibration": "scale",
    "Check": "{scope}",
    "Claim": "claim",
    "ClaimedPhase": "{phase}",
    "ComparedModel": "{model}",
    "Comparison": "comparison",
    "ApproachOptimum": "",
    "CostAtMfu": "MFU {mfu:.4g}",
    "DataLimitedBudget": "data limited",
    "Design": "design",
    "ErrorSummary": "errors, {kind}, gate {gate}",
    "ExaminedMemory": "{name}",
    "ExaminedRatio": "{name}",
    "ExaminedRun": "{name}",
    "ExaminedThroughput": "{name}",
    "FittedLaw": "fit",
    "FittedOptimum": "at {training_flops:.6g} FLOPs",
    "FittedRun": "run {line}",
    "Figure": "{quantity}, {convention}",
    "Fit": "fit on {gpu}",
    "FoundAttention": "{kernel}, head size {head_size}, {sequence_length} tokens",
    "FoundGrouped": "experts, {tokens_per_expert} tokens each",
    "FoundLink": "{ranks} ranks, {in_node} in a node",
    "FoundMachine": "{device_name}",
    "GpuOption": "{gpu}",
    "GpuRun": "{gpu}",
    "ImpliedMfu": "{convention}",
    "InferenceAwareBudget": "inference aware",
    "IsoflopBudget": "at {training_flops:.6g} FLOPs",
    "LawOnModel": "{taken_as} N",
    "LawOptimum": "{law}",
    "LawRow": "{law}",
    "LawsSideBySide": "laws",
    "LayerAnalysis": "{kind} layer",
    "MeasuredSpeed": "",
    "MemoryFigure": "{quantity}",
    "MixtureBudget": "mixture",
    "MixtureOnModel": "{model}",
    "ModuleFlops": "module",
    "ModuleMemory": "module",
    "OfModel": "{model}",
    "OnGpu": "{gpu}",
    "Outcome": "{mfu_source} MFU {mfu:.4g}",
    "ParameterTotals": "",
    "Phase": "{name}",
    "PoolOfStream": "pool of {stream}",
    "RankAnalysis": "rank {first_rank}",
    "RankCollective": "{phase}, {op}, {axis}",
    "RepeatsOnModel": "{model}, {taken_as} N",
    "Remedy": "recompute {recompute}, loss chunk {loss_chunk}",
    "Alternative": "{kernels}, recompute {recompute}, loss chunk {loss_chunk}",
    "ReservedParts": "reserved",
    "ScaledRow": "",
    "ScalingLaw": "{name}",
    "ServingOnModel": "{model}",
    "Span": "micro-batch {micro_batch}, {name}",
    "StatedMemory": "{quantity}",
    "StepMemory": "step",
    "StepTime": "step on {gpu}",
    "StepTimeline": "step over time",
    "Throughput": "",
    "TrainingRun": "{model}",
    "TrainingStep": "step",
    "WrongChoice": "{followed} where {holds} holds",
}

SHARE_A_SCOPE = {"Check"}  # several of one scope are not numbered: quantity and component tell them apart

# (Class, field) -> the scope of the struct in that field, in place of that of its class.
FIELD_SCOPES = {
    ("BudgetPlan", "more_on"): "more on the catalogue",
    ("FittedOptimum", "isoflop"): "isoflop",
    ("FittedOptimum", "parametric"): "parametric",
    ("LawsApart", "costliest"): "costliest",
    ("LawsApart", "fewest_tokens_per_parameter"): "fewest tokens per parameter",
    ("LawsApart", "most_tokens_per_parameter"): "most tokens per parameter",
    ("ComparedModel", "outcome"): "",
    ("RankAnalysis", "memory"): "",
}

# (Class, field) -> the quantity of the number in it and, after a comma, the component.
NAMES_OF_NUMBERS = {
    ("Check", "values"): "{quantity}, {component}",
    ("Figure", "stated"): "{quantity}, stated",
    ("Figure", "ours"): "{quantity}, ours",
    ("FoundAttention", "forward_tflop_per_s"): "tflop_per_s, forward",
    ("FoundAttention", "backward_tflop_per_s"): "tflop_per_s, backward",
    ("FoundBytes", "by_op"): "gb_per_s",
    ("FoundLink", "by_op"): "gb_per_s",
    ("LayerAnalysis", "count"): "layers",
    ("MeasuredSpeed", "value"): "{quantity}, printed",
    ("MemoryFigure", "stated_gib"): "{quantity}_gib, stated",
    ("MemoryFigure", "low_bytes"): "{quantity}_bytes, low",
    ("MemoryFigure", "high_bytes"): "{quantity}_bytes, high",
    ("ModuleFlops", "backward"): "flops, backward",
    ("ModuleFlops", "by_module"): "module_flops",
    ("ModuleFlops", "forward"): "flops, forward",
    ("ModuleMemory", "by_module"): "module_bytes",
    ("ParameterTotals", "total"): "parameters, total",
    ("ParameterTotals", "by_component"): "parameters",
    ("ParameterTotals", "active"): "active_parameters",
    ("ParameterTotals", "active_without_embedding"): "active_parameters_without_embedding",
    ("ParameterTotals", "active_without_vocabulary"): "active_parameters_without_vocabulary",
    ("ParameterTotals", "mtp"): "mtp_parameters",
    ("ParameterTotals", "frozen"): "frozen_parameters",
    ("ParameterTotals", "mtp_frozen"): "mtp_frozen_parameters",
    ("Phase", "peak_bytes"): "peak_bytes, total",
    ("RankAnalysis", "count"): "ranks",
    ("RankCollective", "count"): "calls",
    ("StatedMemory", "gib"): "{quantity}_gib, printed",
    ("StepMemory", "buffers"): "buffer_bytes",
    ("StepMemory", "peak_bytes"): "peak_bytes, total",
    ("StepTimeline", "parts"): "allocated_bytes",
    ("StepTime", "seconds"): "seconds, total",
    ("LayerAnalysis", "peak_memory_bytes"): "peak_memory_bytes, total",
    ("LayerAnalysis", "peak_memory_no_grad_bytes"): "peak_memory_no_grad_bytes, total",
    ("CalibratedStep", "seconds"): "seconds",
}

# (Class, field) whose struct has the parts of one quantity, which is named: each number in it is a component.
PARTS_IN_FIELD = {
    ("LayerAnalysis", "attention_core_flops"): "attention_core_flops",
    ("LayerAnalysis", "peak_memory_parts"): "peak_memory_bytes",
    ("LayerAnalysis", "peak_memory_no_grad_parts"): "peak_memory_no_grad_bytes",
    ("StepMemory", "states"): "state_bytes",
    ("StepTime", "breakdown"): "seconds",
}
# Classes that have the parts of the quantity that their field names, without this end.
PARTS_OF_ANY = {"Constant": "", "Interval": "_interval"}
# Classes of which these fields are no parts, but numbers of their own; all others are parts of the quantity.
PARTS_OF_CLASS = {"Phase": ("peak_bytes", ("micro_batch", "layer", "peak_bytes"))}

# Fields with several numbers -> the quantity of each, and the scope (a word and its place) or the components.
SEVERAL_NUMBERS: dict[str, tuple[str, str | tuple[str, ...]]] = {
    "best_shape": ("best_shape", ("rows", "summed", "columns")),
    "fitted_experts": ("fitted_experts", ("low", "high")),
    "fitted_parameters": ("fitted_parameters", ("low", "high")),
    "fitted_tokens": ("fitted_tokens", ("low", "high")),
    "allocated_bytes": ("allocated_bytes", "moment"),
    "changes": ("changes", "moment"),
    "costs_usd": ("cost_usd", "price"),
    "layer_backward_peak_bytes": ("backward_peak_bytes", "layer"),
    "parabola": ("parabola", ("constant", "linear", "square")),
    "predicted_mfus": ("predicted_mfu", ("slow end", "predicted", "fast end")),
    "prices_usd_per_hour": ("price_usd_per_hour", "price"),
    "reserved_bytes": ("reserved_bytes", ("low", "high")),
    "stage_layers": ("layers", "stage"),
    "stages": ("stage", "part"),
    "sustained_shape": ("sustained_shape", ("rows", "summed", "columns")),
}

# Fields without rows: witnesses are rows of the agreement, and resamples of a fit are data.
WITHOUT_ROWS = {("Analysis", "agreement"), ("IsoflopFit", "bootstrap"), ("ScalingLaw", "bootstrap")}
# Fields that hold values as another document names them: their unit is what that document says.
FOREIGN = {"config", "config_fields", "gpu_fields"}
FOREIGN_UNIT = "as in its file"
