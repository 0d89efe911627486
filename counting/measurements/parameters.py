"""Measured parameters: `numel` of every parameter, by the module that owns it."""

from torch import nn

from counting.counts import COMPONENTS, Counts
from counting.measurements.components import component_of
from torch_models.modules.moe import RoutedExperts, Router


def count_parameters(module: nn.Module) -> Counts:
    """Trainable parameters by component; a parameter shared by two modules counts once, for the first."""
    counts = dict.fromkeys(COMPONENTS, 0)
    for name, parameter in module.named_parameters():
        component = component_of(module, name.rpartition(".")[0])
        assert component in counts, f"parameter {name} belongs to no component"
        counts[component] += parameter.numel()
    return Counts(**counts)


def router_correction_bias(module: nn.Module) -> int:
    """Elements of the routers' correction biases, which are part of the model but not updated by an optimiser."""
    routers = (router for router in module.modules() if isinstance(router, Router))
    return sum(buffer.numel() for router in routers for buffer in router.buffers(recurse=False))


def linear_weights(module: nn.Module) -> int:
    """Weights in the matrices of attention and feed-forward, which DeepSeek-V3's checkpoint holds in fp8.

    A module lists the names of these parameters in its attribute `quantised`; modules without it have none.
    """
    return sum(
        owner.get_parameter(name).numel() for owner in module.modules() for name in getattr(owner, "quantised", ())
    )


def buffer_bytes(module: nn.Module) -> int:
    """Bytes of all buffers: the routers' correction biases, in fp32."""
    return sum(buffer.untyped_storage().nbytes() for buffer in module.buffers())


def inactive_parameters(module: nn.Module) -> int:
    """Parameters of the routed experts that one token does not visit."""
    inactive = 0
    for experts in module.modules():
        if isinstance(experts, RoutedExperts):
            of_one = sum(parameter[0].numel() for parameter in experts.parameters())
            inactive += (experts.num_experts - experts.top_k) * of_one
    return inactive
