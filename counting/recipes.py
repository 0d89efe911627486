"""Precision recipes (the formats of weights, gradients and optimiser state) and optimisers, as data.

All bytes are unsharded, before data parallelism, ZeRO or tensor parallelism divides them.
"""

from math import prod
from typing import Literal, NamedTuple, TypeVar

import msgspec

from torch_models.errors import ArgumentError

_FP32 = 4


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


Role = Literal["matrix", "vector", "vocabulary"]  # the last: embedding tables and the head


class TrainedTensor(NamedTuple):
    """The shape of one parameter tensor, and what it is to an optimiser.

    If it stacks the tensors of all experts, its first dimension is the experts', and `role` is that of one of them.
    """

    shape: tuple[int, ...]
    role: Role
    stacked: bool = False

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)


Moments = Literal["none", "one", "two", "two_in_8_bits", "rows_and_columns"]


class Optimizer(msgspec.Struct, frozen=True, kw_only=True):
    """An optimiser: the moments that it stores for each parameter, and how it updates them.

    `moments` are those of every parameter or, if `other_moments` is set, of the matrices within layers; embedding
    tables, head and vectors then have `other_moments`. Step counters are left out.
    """

    name: str
    description: str
    moments: Moments
    other_moments: Moments | None = None
    all_at_once: bool = False  # one call computes with tensors for all parameters, instead of one after the other
    carries_over: bool = False  # tensors computed for one parameter are alive until the next one's are computed
    measurable: bool = True  # torch has it, so that it runs on the meta device
    citation: str
    note: str | None = None  # printed with the memory of a step

    def moments_of(self, tensor: TrainedTensor) -> Moments:
        """The moments that it stores for `tensor`."""
        return self.moments if tensor.role == "matrix" or self.other_moments is None else self.other_moments

    @property
    def moments_per_parameter(self) -> int | None:
        """How many numbers it stores for each parameter; None if that depends on the tensor, or is in 8 bits."""
        return None if self.other_moments else _NUMBERS.get(self.moments)


_NUMBERS: dict[Moments, int] = {"none": 0, "one": 1, "two": 2}
SMALLEST_IN_8_BITS = 4096  # tensors with fewer numbers have moments in fp32
BLOCK_IN_8_BITS = 256  # numbers with one scale in fp32


def moment_bytes(tensor: TrainedTensor, precision: Precision, optimizer: Optimizer) -> int:
    """Bytes of the moments of one tensor.

    In 8 bits, each of two moments has a byte for each number and a scale in fp32 for each block. By rows and columns,
    a tensor with two dimensions or more has a number for each row and each column of its matrices; a vector has one
    for each of its numbers.
    """
    moments, numel = optimizer.moments_of(tensor), tensor.numel
    if moments == "two_in_8_bits":
        small = numel < SMALLEST_IN_8_BITS
        return 2 * (_FP32 * numel if small else numel + _FP32 * -(-numel // BLOCK_IN_8_BITS))
    if moments == "rows_and_columns":
        *matrices, rows, columns = (1, *tensor.shape)
        numbers = columns if len(tensor.shape) == 1 else prod(matrices) * (rows + columns)
    else:
        numbers = _NUMBERS[moments] * numel
    return precision.moment_bytes * numbers


def states_measurable(precision: Precision, optimizer: Optimizer) -> bool:
    """Whether torch runs the update on the meta device, so that the model states can be measured."""
    return precision.measurable and optimizer.measurable


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

    def __sub__(self, other: "ModelStates") -> "ModelStates":
        return ModelStates(**{f: getattr(self, f) - getattr(other, f) for f in self.__struct_fields__})

    def __mul__(self, factor: int) -> "ModelStates":
        return ModelStates(**{f: getattr(self, f) * factor for f in self.__struct_fields__})


def model_states(
    parameters: int, linear_weights: int, moments: int, precision: Precision, *, frozen: int = 0
) -> ModelStates:
    """Bytes of the model states of `parameters`, of which fp8 recipes quantise only the `linear_weights`.

    `moments` are the bytes of all moments (`moment_bytes`). The scales of quantised blocks, one per 128 x 128 numbers,
    are left out. The `frozen` ones of the parameters have weights, but neither gradients nor masters.
    """
    rest, trained = parameters - linear_weights, parameters - frozen
    return ModelStates(
        weights=precision.weight_bytes * linear_weights + precision.unquantised_weight_bytes * rest,
        gradients=precision.gradient_bytes * trained,
        masters=precision.master_bytes * trained,
        moments=moments,
    )


def bytes_per_parameter(precision: Precision, optimizer: Optimizer) -> int | None:
    """Bytes of the model states of one linear weight; None if the moments depend on the tensor."""
    moments = optimizer.moments_per_parameter
    return None if moments is None else model_states(1, 1, moments * precision.moment_bytes, precision).total


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
    Optimizer(
        name="adamw",
        description="AdamW in one fused kernel",
        moments="two",
        citation="Loshchilov & Hutter 2019 (arXiv 1711.05101); torch.optim.AdamW with fused=True",
    ),
    Optimizer(
        name="adamw-foreach",
        description="AdamW by operations on all parameters at once, with one more copy of them on the way",
        moments="two",
        all_at_once=True,
        citation="torch.optim.AdamW with foreach=True, torch's default on CUDA",
        note="adamw-foreach computes with all parameters at once: it holds one more copy of them in the format of the "
        "moments and, with 16-bit gradients and master weights, an fp32 copy of all gradients.",
    ),
    Optimizer(
        name="adamw-8bit",
        description="AdamW with moments in 8 bits, and a scale in fp32 for each block of 256",
        moments="two_in_8_bits",
        measurable=False,
        citation="Dettmers et al. 2022 (arXiv 2110.02861); bitsandbytes.optim.AdamW8bit, since 0.44 with blocks of 256",
        note="adamw-8bit is bitsandbytes', by recipe from the measured shapes, because it does not run on the meta "
        "device: two moments of a byte for each parameter, their scales, and fp32 moments for tensors of less than "
        "4,096 numbers. Its update is one kernel; the tables of the 256 values of a byte are left out.",
    ),
    Optimizer(
        name="adafactor",
        description="a second moment by rows and columns",
        moments="rows_and_columns",
        carries_over=True,
        citation="Shazeer & Stern 2018 (arXiv 1804.04235); torch.optim.Adafactor, without foreach",
        note="adafactor has the factored second moment and no first one. Its update is as large as the parameter; "
        "without master weights torch frees it only when that of the next parameter exists.",
    ),
    Optimizer(
        name="sgd",
        description="SGD without momentum",
        moments="none",
        citation="Robbins & Monro 1951; torch.optim.SGD",
    ),
    Optimizer(
        name="sgd-momentum",
        description="SGD with momentum",
        moments="one",
        citation="Polyak 1964; torch.optim.SGD with momentum",
    ),
    Optimizer(
        name="muon",
        description="Muon for the matrices within layers, AdamW for embedding, head and vectors",
        moments="one",
        other_moments="two",
        citation="Jordan et al. 2024; Liu et al. 2025 (arXiv 2502.16982); torch.optim.Muon",
        note="muon updates the matrices within layers, those of each expert apart and the router's too; AdamW, with "
        "two moments, updates embedding, head, norms, biases and sinks. The orthogonalisation runs in 16 bits.",
    ),
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
