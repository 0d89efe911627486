"""Precision recipes (the formats of weights, gradients and optimiser state) and optimisers, as data.

A recipe gives bytes per parameter, unsharded, before data parallelism, ZeRO or tensor parallelism divides them.
"""

from typing import TypeVar

import msgspec

from torch_models.errors import ArgumentError


class Precision(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes per parameter of weights, gradients and optimiser state, and bytes per number of an activation."""

    name: str
    description: str
    weight_bytes: int  # of the linear weights that the forward pass uses
    unquantised_weight_bytes: int  # of embedding, head, router and norms, which fp8 recipes do not quantise
    gradient_bytes: int  # in the format in which gradients are accumulated
    master_bytes: int  # of the master copy that the optimiser updates; 0 if it updates the weights directly
    moment_bytes: int  # of each moment of the optimiser
    activation_bytes: int
    citation: str

    @property
    def gradients_apart(self) -> bool:
        """Whether each gradient is added to a buffer in another format as soon as it is computed, and then freed."""
        return self.gradient_bytes != self.activation_bytes

    @property
    def activation_dtype(self) -> str:
        """Torch's name of the dtype in which a step is measured; 16-bit formats are measured in bfloat16."""
        return "float32" if self.activation_bytes == 4 else "bfloat16"

    @property
    def multiplies_in_fp8(self) -> bool:
        """Whether linear layers multiply fp8 numbers."""
        return self.weight_bytes == 1

    @property
    def measurable(self) -> bool:
        """Whether torch runs it on the meta device.

        Then the weights have the activations' format, and the moments have the format of the updated weights.
        """
        updated_bytes = self.master_bytes or self.weight_bytes
        return self.weight_bytes == self.activation_bytes and self.moment_bytes == updated_bytes


class Optimizer(msgspec.Struct, frozen=True, kw_only=True):
    """An optimiser, and how many numbers (moments) it stores per parameter."""

    name: str
    moments: int
    citation: str


class ModelStates(msgspec.Struct, frozen=True, kw_only=True):
    """Bytes of parameters and optimiser state, and of gradients when the backward pass is complete."""

    weights: int
    gradients: int
    masters: int
    moments: int

    @property
    def total(self) -> int:
        """The sum of all parts."""
        return self.weights + self.gradients + self.masters + self.moments

    def __add__(self, other: "ModelStates") -> "ModelStates":
        return ModelStates(**{f: getattr(self, f) + getattr(other, f) for f in self.__struct_fields__})

    def __mul__(self, factor: int) -> "ModelStates":
        return ModelStates(**{f: getattr(self, f) * factor for f in self.__struct_fields__})


def model_states(parameters: int, linear_weights: int, precision: Precision, optimizer: Optimizer) -> ModelStates:
    """Bytes of a recipe's model states for `parameters`; fp8 recipes quantise only the `linear_weights` among them.

    The scales of quantised blocks, one per 128 x 128 numbers, are left out.
    """
    rest = parameters - linear_weights
    return ModelStates(
        weights=precision.weight_bytes * linear_weights + precision.unquantised_weight_bytes * rest,
        gradients=precision.gradient_bytes * parameters,
        masters=precision.master_bytes * parameters,
        moments=optimizer.moments * precision.moment_bytes * parameters,
    )


PRECISIONS = (
    Precision(
        name="mixed",
        description="16-bit weights and gradients, fp32 master weights and moments",
        weight_bytes=2,
        unquantised_weight_bytes=2,
        gradient_bytes=2,
        master_bytes=4,
        moment_bytes=4,
        activation_bytes=2,
        citation="Micikevicius et al. 2018 (arXiv 1710.03740); 16 bytes: Rajbhandari et al. 2020 (arXiv 1910.02054)",
    ),
    Precision(
        name="mixed-fp32-gradients",
        description="16-bit weights, gradients accumulated in fp32, fp32 master weights and moments",
        weight_bytes=2,
        unquantised_weight_bytes=2,
        gradient_bytes=4,
        master_bytes=4,
        moment_bytes=4,
        activation_bytes=2,
        citation="Megatron-LM's accumulate_allreduce_grads_in_fp32; its distributed optimiser's table says 18 bytes",
    ),
    Precision(
        name="bf16",
        description="weights, gradients and moments in 16 bits, fp16 or bf16",
        weight_bytes=2,
        unquantised_weight_bytes=2,
        gradient_bytes=2,
        master_bytes=0,
        moment_bytes=2,
        activation_bytes=2,
        citation="torch's optimisers keep their state in the parameter's dtype",
    ),
    Precision(
        name="fp32",
        description="everything in fp32",
        weight_bytes=4,
        unquantised_weight_bytes=4,
        gradient_bytes=4,
        master_bytes=0,
        moment_bytes=4,
        activation_bytes=4,
        citation="torch's default dtype",
    ),
    Precision(
        name="fp8",
        description="fp8 weights of linear layers, fp32 master weights and gradients, bf16 moments",
        weight_bytes=1,
        unquantised_weight_bytes=2,
        gradient_bytes=4,
        master_bytes=4,
        moment_bytes=2,
        activation_bytes=2,
        citation="DeepSeek-V3 (arXiv 2412.19437), §3.3.1 and §3.3.3",
    ),
)

OPTIMIZERS = (
    Optimizer(name="adamw", moments=2, citation="Loshchilov & Hutter 2019 (arXiv 1711.05101)"),
    Optimizer(name="sgd", moments=0, citation="without momentum"),
    Optimizer(name="muon", moments=1, citation="Jordan et al. 2024; one momentum, whatever the parameter's shape"),
)

DEFAULT_PRECISION, DEFAULT_OPTIMIZER = PRECISIONS[0], OPTIMIZERS[0]


def find_precision(name: str) -> Precision:
    """The recipe called `name`, ignoring case. Raises `ArgumentError` with the known names."""
    return _find(PRECISIONS, name, "precision")


def find_optimizer(name: str) -> Optimizer:
    """The optimiser called `name`, ignoring case. Raises `ArgumentError` with the known names."""
    return _find(OPTIMIZERS, name, "optimizer")


_N = TypeVar("_N", Precision, Optimizer)


def _find(known: tuple[_N, ...], name: str, what: str) -> _N:
    for entry in known:
        if isinstance(name, str) and entry.name == name.strip().lower():
            return entry
    raise ArgumentError(what, name, f"is not known: choose from {', '.join(entry.name for entry in known)}")
