"""What training a model costs, on the command line and by three functions.

    python3 model_training_cost_analysis.py --model_config deepseek_v3_config.json --seq_len 4096
    python3 model_training_cost_analysis.py --training_budget 5000000 --design my_model_config.json

The entry points alone: the command stands in `counting.command`, and what a model costs is computed in `counting`.
"""

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


def model_training_cost_analysis_llama(model_config_path: str) -> tuple[int, float, float]:
    """Total parameters, TFLOPs and peak memory in GB of one layer's forward pass, of a Llama config.

    The config is a path, or a name in `configs/`. One sequence, of the length that the model was pre-trained at as far
    as its config says: `max_sequence_length`, else `original_max_position_embeddings` wherever it stands, else
    `max_position_embeddings`. 16-bit numbers, activations checkpointed at layer boundaries, fused kernels.
    """
    return _short_analysis(model_config_path, "llama")


def model_training_cost_analysis_deepseek(model_config_path: str) -> tuple[int, float, float]:
    """As for Llama, of a DeepSeek-V3 config; the layer is the mixture of experts, the published one's length 4,096."""
    return _short_analysis(model_config_path, "deepseek_v3")


def get_optimal_N_D_from_cost(cost_budget: float) -> tuple[int, int, float, str]:
    """Optimal parameters N, optimal tokens D, training FLOPs and best GPU for a budget in US dollars."""
    plan = plan_budget(cost_budget)
    return plan.optimal_parameters, plan.optimal_tokens, float(plan.training_flops), plan.best_gpu


def _short_analysis(model_config_path: str, family: str) -> tuple[int, float, float]:
    spec = read_spec(model_config_path)
    if spec.model_type != family:
        raise ConfigError("model_type", spec.model_type, f"this function is for {family}", str(model_config_path))
    analysis = analyze(spec, step=False)
    layer = analysis.main_layer
    return analysis.parameters.total, layer.forward_tflops, layer.peak_memory_gb


if __name__ == "__main__":
    command()
