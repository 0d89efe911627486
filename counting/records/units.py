"""The unit of each quantity: by its name, or by what its name ends with. Spelt out, in the singular."""

import re

YES_OR_NO = "1 = yes"
RATIO, NUMBER, INDEX = "ratio", "number", "index"  # an index counts from 0

_OF_NAME = {
    "calls": "call",
    "changes": NUMBER,
    "context_rank": INDEX,
    "count": NUMBER,
    "first": INDEX,
    "first_rank": INDEX,
    "high": RATIO,
    "in_flight": "micro-batch",
    "in_node": "rank",
    "last": INDEX,
    "layer": INDEX,
    "layers": "layer",
    "loss_chunk": "token",
    "low": RATIO,
    "micro_batch": INDEX,
    "micro_batch_size": "sequence",
    "micro_batches": "micro-batch",
    "micro_batches_shown": "micro-batch",
    "ninetieth": RATIO,
    "median": RATIO,
    "median_absolute": RATIO,
    "multiprocessors": NUMBER,
    "rank": INDEX,
    "ranks": "rank",
    "recompute": "layer",
    "replays": NUMBER,
    "rows": "row",
    "runs": "run",
    "scale": RATIO,
    "sequence_length": "token",
    "spread": RATIO,
    "stage": INDEX,
    "stages_per_rank": "stage",
    "steps": "step",
    "tenth": RATIO,
    "threads": "thread",
    "zero": NUMBER,
}
_OF_NAME |= dict.fromkeys(
    ("coefficient", "exponent", "parameter_coefficient", "parameter_exponent", "token_coefficient", "token_exponent"),
    NUMBER,
)
_OF_NAME |= dict.fromkeys(("agreed", "at_best", "line", "minima", "objective", "parabola", "quantity", "seed"), NUMBER)
_OF_NAME |= dict.fromkeys(("resamples", "resamples_at_bound", "starts"), NUMBER)
_OF_NAME |= dict.fromkeys(("beyond_parameters", "beyond_tokens", "orders_beyond"), "order of magnitude")
_OF_NAME |= dict.fromkeys(("added", "expansion_rate", "fitted_experts", "largest_excess", "saved"), RATIO)
_OF_NAME |= dict.fromkeys(("wasted_compute", "residual", "median_residual", "granularity", "sparsity"), RATIO)
_OF_NAME |= dict.fromkeys(("dp", "fsdp", "tp", "cp", "ep", "pp"), "rank")
_OF_NAME |= dict.fromkeys(("num_gpus", "gpus_per_node", "fewest_gpus", "gpus"), "GPU")
_OF_NAME |= dict.fromkeys(("head_size", "best_shape", "sustained_shape"), NUMBER)
_OF_NAME |= dict.fromkeys(("router_correction_bias", "mtp_router_correction_bias"), NUMBER)

_OF_END = tuple(
    (re.compile(pattern), unit)
    for pattern, unit in (
        # What is printed in papers.
        (r"^petaflop_days$", "PFLOP/s-day"),
        (r"^gflop_per_token$", "GFLOP/token"),
        (r"^seconds_per_step$", "second/step"),
        (r"^tokens_per_day$", "token/day"),
        (r"^gpu_hours_per_trillion_tokens$", "GPU-hour/10^12 token"),
        (r"^kv_cache_kb_per_token$", "KB/token"),
        # Rates.
        (r"flops(_causal)?_per_token(_if_dense)?$", "FLOP/token"),
        (r"tokens_per_parameter$", "token/parameter"),
        (r"tokens_per_expert$", "token/expert"),
        (r"tokens_per_second_per_gpu$", "token/second/GPU"),
        (r"tokens_per_second$", "token/second"),
        (r"tflop_per_s(econd_per_gpu)?$", "TFLOP/second"),
        (r"gb_per_s$", "GB/second"),
        (r"usd_per_hour$", "USD/hour"),
        # Ratios.
        (r"(mfus?|hfu|share|ratio|errors?|difference|imbalance)$|_over_|^saved_by_|^(measured|estimated)$", RATIO),
        # Amounts.
        (r"flops|skipped_by_causality", "FLOP"),
        (r"bytes", "byte"),
        (r"operations$", "operation"),
        (r"gib$|_in_gib$", "GiB"),
        (r"seconds$", "second"),
        (r"hours$", "GPU-hour"),
        (r"days$", "day"),
        (r"epochs$", "epoch"),
        (r"usd$", "USD"),
        (r"mwh$", "MWh"),
        (r"watts$", "watt"),
        (r"loss$", "nat/token"),
        (r"parameters|linear_weights", "parameter"),
        (r"tokens$", "token"),
    )
)


def unit_of_quantity(quantity: str) -> str:
    """The unit of `quantity`; empty if its name does not say it, which a test does not allow."""
    if quantity in _OF_NAME:
        return _OF_NAME[quantity]
    return next((unit for pattern, unit in _OF_END if pattern.search(quantity)), "")
