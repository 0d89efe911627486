"""The formats in which fully_shard stores, gathers and reduces, by precision recipe.

`torch/distributed/fsdp/_fully_shard/_fsdp_api.py`, `MixedPrecisionPolicy`: parameters are stored in their own dtype,
converted to `param_dtype` for the all-gather, and gradients to `reduce_dtype` for the reduce-scatter. Without a policy
all three are the parameters' dtype (`_fsdp_param.py`, `init_dtype_attrs`).
"""

from typing import NamedTuple

from counting.setup import Setup


class Formats(NamedTuple):
    """Bytes per number of what fully_shard stores, of what it gathers, and of what it reduces.

    Gradients are computed in the format that is gathered, and each rank keeps its part in the format that is stored.
    """

    stored: int
    gathered: int
    reduced: int

    @property
    def copies_shards(self) -> bool:
        """Whether shards are converted, which needs a copy of them, before they are gathered."""
        return self.stored != self.gathered

    @property
    def converts_gradients(self) -> bool:
        """Whether gradients that are kept over several micro-batches are kept in another format than computed."""
        return self.gathered != self.reduced


WITH_POLICY = Formats(stored=4, gathered=2, reduced=4)  # fp32 parameters; MixedPrecisionPolicy(bf16, fp32)
ALL_BF16 = Formats(stored=2, gathered=2, reduced=2)
ALL_FP32 = Formats(stored=4, gathered=4, reduced=4)

FUSED = "adamw"  # the fused kernel reads the step counts on the device; adamw-foreach has them on the host

FORMATS = {"mixed": WITH_POLICY, "mixed-fp32-gradients": WITH_POLICY, "bf16": ALL_BF16, "fp32": ALL_FP32}


def formats(setup: Setup) -> Formats:
    """Return the formats of the setup's precision recipe."""
    return FORMATS[setup.precision]


class Stored(NamedTuple):
    """Bytes per number of what a rank stores, and whether the optimiser's step counts are on the device."""

    weight: int
    gradient: int
    master: int
    moment: int
    counts_steps: bool


def stored(setup: Setup, *, sharded: bool) -> Stored:
    """Return what a rank stores for each number that it updates.

    Under fully_shard that is one format, in which the optimiser updates too. Without it, with tensor parallelism alone,
    the recipe is that of one device, on the rank's parts.
    """
    if sharded:
        width = formats(setup).stored
        return Stored(width, width, 0, width, setup.optimizer == FUSED)
    recipe = setup.precision_recipe
    return Stored(recipe.weight_bytes, recipe.gradient_bytes, recipe.master_bytes, recipe.moment_bytes, False)
