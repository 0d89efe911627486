"""Measured parameters: `numel` of every parameter, by the module that owns it."""

from torch import nn

from counting.counts import COMPONENTS, Counts
from counting.measurements.components import component_of
from torch_models.modules.moe import RoutedExperts, Router

# Where linear layers stand, but for head and router, which recipes in fp8 leave alone.
LINEAR = ("attention", "mlp", "routed_experts", "shared_experts")


def count_parameters(module: nn.Module) -> Counts:
    """Trainable parameters by component; a parameter shared by two modules counts once, where it stands first."""
    counts = dict.fromkeys(COMPONENTS, 0)
    for name, parameter in module.named_parameters():
        component = component_of(module, name.rpartition(".")[0])
        assert component in counts, f"parameter {name} belongs to no component"
        counts[component] += parameter.numel()
    return Counts(**counts)


def router_correction_bias(module: nn.Module) -> int:
    """Numbers in the routers' correction biases: part of the model, but no optimiser updates them."""
    routers = (router for router in module.modules() if isinstance(router, Router))
    return sum(buffer.numel() for router in routers for buffer in router.buffers(recurse=False))


def linear_weights(module: nn.Module) -> int:
    """Weights in the matrices of attention and feed-forward, which DeepSeek-V3's checkpoint holds in fp8.

    Not so its routers, nor a module that says of itself that it is not `quantised`.
    """
    return sum(
        parameter.numel()
        for name, owner in module.named_modules()
        if component_of(module, name) in LINEAR and getattr(owner, "quantised", True)
        for weight, parameter in owner.named_parameters(recurse=False)
        if parameter.dim() >= 2 and not weight.endswith("bias")
    )


def inactive_parameters(module: nn.Module) -> int:
    """Parameters of the routed experts that one token does not visit."""
    inactive = 0
    for experts in module.modules():
        if isinstance(experts, RoutedExperts):
            of_one = sum(parameter[0].numel() for parameter in experts.parameters())
            inactive += (experts.num_experts - experts.top_k) * of_one
    return inactive
