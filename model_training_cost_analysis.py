"""The cost of training a model: the command line, and three functions.

    python3 model_training_cost_analysis.py --model_config deepseek_v3_config.json --seq_len 4096
    python3 model_training_cost_analysis.py --training_budget 5000000 --design my_model_config.json

This module has the entry points only: the command is in `counting.command`, the calculations are in `counting`.
"""

import os
from collections.abc import Mapping
from typing import Any

try:
    from counting import analyze, plan_budget
    from counting.command.main import main
    from counting.command.start_up import command
    from torch_models import ConfigError, read_spec
except ModuleNotFoundError as error:
    if __name__ != "__main__":
        raise
    from counting.command.missing import leave_without

    leave_without(error)

__all__ = [
    "command",
    "get_optimal_N_D_from_cost",
    "main",
    "model_training_cost_analysis_deepseek",
    "model_training_cost_analysis_llama",
]

AnyConfig = str | os.PathLike[str] | Mapping[str, Any]


def model_training_cost_analysis_llama(model_config_path: AnyConfig) -> tuple[int, float, float]:
    """Total parameters of a Llama config, and TFLOPs and peak memory in GB of one layer's forward pass.

    The config is a path, its folder, a name in `configs/`, or a mapping of its fields. The batch is one sequence, whose
    length is the config's `max_sequence_length`, else `original_max_position_embeddings` at any level, else
    `max_position_embeddings`. 16-bit numbers, activations checkpointed at layer boundaries, fused kernels. Raises
    ConfigError for another family.
    """
    return _short_analysis(model_config_path, "llama")


def model_training_cost_analysis_deepseek(model_config_path: AnyConfig) -> tuple[int, float, float]:
    """The same for a DeepSeek-V3 config. The layer is a mixture of experts; the published config has length 4,096."""
    return _short_analysis(model_config_path, "deepseek_v3")


def get_optimal_N_D_from_cost(cost_budget: float) -> tuple[int, int, float, str]:
    """Optimal parameters N, optimal tokens D, training FLOPs and best GPU for a budget in US dollars."""
    plan = plan_budget(cost_budget)
    return plan.optimal_parameters, plan.optimal_tokens, float(plan.training_flops), plan.best_gpu


def _short_analysis(model_config_path: AnyConfig, family: str) -> tuple[int, float, float]:
    spec = read_spec(model_config_path)
    if spec.model_type != family:
        named = None if isinstance(model_config_path, Mapping) else os.fspath(model_config_path)
        file = named if spec.folder is None else os.path.join(spec.folder, "config.json")
        raise ConfigError("model_type", spec.model_type, f"this function is for {family}", file)
    analysis = analyze(spec, step=False)
    layer = analysis.main_layer
    return analysis.parameters.total, layer.forward_tflops, layer.peak_memory_gb


if __name__ == "__main__":
    command()
