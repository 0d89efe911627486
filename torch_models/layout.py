"""How a training step is spread over ranks: one frozen `Layout`, torch-free.

    Layout(num_gpus=64, fsdp=8, tp=8)

num_gpus = dp x fsdp x tp x cp x pp. `ep` is no factor: it borrows ranks from dp x fsdp. Ranks are numbered with tp as
the innermost axis, then fsdp, then dp, so that ranks of one tp group are neighbours.
"""

from typing import Literal, get_args

import msgspec

from torch_models.errors import ArgumentError

MOST_GPUS = 2**20
DEFAULT_GPUS_PER_NODE = 8

Zero = Literal[1, 2, 3]
Grouping = Literal["torchtitan", "layers"]

# Fields for which only one value is measured so far.
FIXED: dict[str, object] = {
    "cp": 1,
    "pp": 1,
    "schedule": None,
    "stages_per_rank": None,
    "stage_layers": None,
    "framework": "torch",
}


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """How a step is spread over ranks. Raises `ArgumentError` for a value that no model could use.

    `zero` is what fsdp divides. 3: parameters, gradients and optimiser state; parameters are freed after a layer's
    forward pass and gathered again for backward. 2: as 3, but parameters stay gathered from forward to backward. 1: as
    2, but each rank accumulates whole gradients over the micro-batches of a step, and they are reduced once, after the
    last one (Rajbhandari et al. 2020, arXiv 1910.02054, names the three stages).

    `grouping` says which parameters fully_shard gathers together. ``torchtitan``: the embedding; final norm and head,
    which stay gathered; each layer. ``layers``: each layer, and all other parameters in the group of the root.
    """

    num_gpus: int | None = None  # None: the product of the axes
    gpus_per_node: int | None = None  # None: `DEFAULT_GPUS_PER_NODE`, unless the catalogue says otherwise
    dp: int | None = None  # replicas; None: what is left of num_gpus
    fsdp: int = 1  # ranks over which fully_shard divides the states
    zero: Zero = 3
    tp: int = 1  # ranks that divide every matrix of a layer, the heads and the vocabulary
    sequence_parallel: bool = True  # with tp: the residual stream and the norms are divided by position
    cp: int = 1
    ep: int = 1  # ranks that divide the experts
    pp: int = 1
    schedule: str | None = None
    stages_per_rank: int | None = None
    stage_layers: tuple[int, ...] | None = None
    grouping: Grouping = "torchtitan"
    framework: Literal["torch"] = "torch"
    expert_imbalance: float = 1.0  # rows of the busiest rank's experts, relative to the mean over the ranks

    def __post_init__(self) -> None:
        for field, only in FIXED.items():
            value = getattr(self, field)
            if type(value) is not type(only) or value != only:
                raise ArgumentError(field, value, f"must be {only}: nothing else is measured yet")
        for field in ("num_gpus", "gpus_per_node", "dp"):
            if getattr(self, field) is not None:
                _check_ranks(field, getattr(self, field))
        for field in ("fsdp", "tp", "ep"):
            _check_ranks(field, getattr(self, field))
        for field, known in (("zero", get_args(Zero)), ("grouping", get_args(Grouping))):
            value = getattr(self, field)
            if type(value) not in (int, str) or value not in known:
                raise ArgumentError(field, value, f"must be one of {', '.join(map(str, known))}")
        if not isinstance(self.sequence_parallel, bool):
            raise ArgumentError("sequence_parallel", self.sequence_parallel, "must be true or false")
        imbalance = self.expert_imbalance
        if isinstance(imbalance, bool) or not isinstance(imbalance, int | float) or not 1 <= imbalance <= MOST_GPUS:
            raise ArgumentError("expert_imbalance", imbalance, "must be at least 1, which is balanced routing")

    @property
    def replicas(self) -> int:
        """dp; the layout must be resolved."""
        assert self.dp is not None
        return self.dp

    @property
    def data_ranks(self) -> int:
        """Ranks with different data: dp x fsdp. The layout must be resolved."""
        return self.replicas * self.fsdp

    @property
    def ranks(self) -> int:
        """All ranks; the layout must be resolved."""
        return self.data_ranks * self.tp

    @property
    def is_sharded(self) -> bool:
        """Whether fully_shard is applied: wherever ranks have different data. The layout must be resolved."""
        return self.data_ranks > 1

    @property
    def expert_fsdp(self) -> int:
        """Ranks over which fully_shard divides a stack of experts: fsdp / ep, at least 1."""
        return max(self.fsdp // self.ep, 1)

    @property
    def expert_replicas(self) -> int:
        """Ranks that hold the same part of a stack of experts. The layout must be resolved."""
        return self.data_ranks // (self.ep * self.expert_fsdp)


def _check_ranks(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_GPUS:
        raise ArgumentError(field, value, f"must be a whole number from 1 to {MOST_GPUS}")
