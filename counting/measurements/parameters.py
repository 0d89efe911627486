"""Measured parameters: `numel` of every parameter, by the module that owns it."""

from torch import nn

from counting.counts import COMPONENTS, Counts
from counting.measurements.components import component_of
from counting.recipes import Optimizer, Precision, Role, TrainedTensor, moment_bytes
from torch_models.modules.moe import OwnsCorrectionBias, RoutedExperts

VOCABULARY = ("word_embedding", "positional_embedding", "lm_head")


def count_parameters(module: nn.Module) -> Counts:
    """Parameters by component; a parameter shared by two modules counts once, for the first."""
    counts = dict.fromkeys(COMPONENTS, 0)
    for name, parameter in module.named_parameters():
        component = component_of(module, name.rpartition(".")[0])
        assert component in counts, f"parameter {name} belongs to no component"
        counts[component] += parameter.numel()
    return Counts(**counts)


def frozen_parameters(module: nn.Module) -> int:
    """The number of parameters that no gradient reaches: those of indexers."""
    return sum(parameter.numel() for parameter in module.parameters() if not parameter.requires_grad)


def updated_parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters that an optimiser updates, in their order."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


def trained_tensors(module: nn.Module) -> list[TrainedTensor]:
    """The shape of each parameter that is trained, in their order, and what it is to an optimiser."""
    found = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        owner = name.rpartition(".")[0]
        component = component_of(module, owner)
        stacked = component == "routed_experts" and any(
            own.dim() == 3 for own in module.get_submodule(owner).parameters(recurse=False)
        )
        role: Role = "matrix" if parameter.dim() - stacked == 2 else "vector"
        found.append(TrainedTensor(tuple(parameter.shape), "vocabulary" if component in VOCABULARY else role, stacked))
    return found


def moments_by_recipe(module: nn.Module, precision: Precision, optimizer: Optimizer) -> int:
    """Bytes of an optimiser's moments, by its recipe from the shapes of the parameters of `module`."""
    return sum(moment_bytes(tensor, precision, optimizer) for tensor in trained_tensors(module))


def router_correction_bias(module: nn.Module) -> int:
    """Elements of the routers' correction biases, which are part of the model but not updated by an optimiser."""
    owners = (owner for owner in module.modules() if isinstance(owner, OwnsCorrectionBias))
    return sum(buffer.numel() for owner in owners for buffer in owner.buffers(recurse=False))


def linear_weights(module: nn.Module) -> int:
    """Weights in the matrices of attention and feed-forward, which DeepSeek-V3's checkpoint holds in fp8.

    A module lists the names of these parameters in its attribute `quantised`; modules without it have none.
    """
    return sum(
        owner.get_parameter(name).numel() for owner in module.modules() for name in getattr(owner, "quantised", ())
    )


def buffer_bytes(module: nn.Module) -> int:
    """Bytes of all buffers, those with one storage once: here the routers' correction biases, in fp32."""
    storages = {id(storage): storage for storage in (buffer.untyped_storage() for buffer in module.buffers())}
    return sum(storage.nbytes() for storage in storages.values())


def inactive_parameters(module: nn.Module) -> int:
    """Parameters of the routed experts that one token does not visit."""
    inactive = 0
    for experts in module.modules():
        if isinstance(experts, RoutedExperts):
            of_one = sum(parameter[0].numel() for parameter in experts.parameters())
            inactive += (experts.num_experts - experts.top_k) * of_one
    return inactive
