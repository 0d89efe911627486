"""How a training step is spread over ranks: one frozen `Layout`, torch-free.

    Layout(num_gpus=64, fsdp=8, tp=8)

num_gpus = dp x fsdp x tp x cp x pp. `ep` is no factor: it borrows ranks from dp x fsdp x cp. Ranks are numbered with tp
as the innermost axis, then cp, fsdp, dp, and pp, so that ranks of one tp group are neighbours. As in torchtitan, the
ranks of cp, which have the same parameters, divide the states too: fully_shard has fsdp x cp shards.
"""

from typing import Literal, get_args

import msgspec

from torch_models.errors import ArgumentError

MOST_GPUS = 2**20
DEFAULT_GPUS_PER_NODE = 8

Zero = Literal[1, 2, 3]
Grouping = Literal["torchtitan", "layers"]
Framework = Literal["torch", "megatron"]
Schedule = Literal["gpipe", "1f1b", "interleaved", "zb", "zbv", "dualpipev"]

DEFAULT_SCHEDULE: Schedule = "1f1b"
MOST_STAGES_PER_RANK = 64
SEVERAL_STAGES = ("interleaved", "zb", "zbv", "dualpipev")  # schedules with two stages or more on each rank
HALVED = ("zb", "zbv", "dualpipev")  # schedules that run backward in two halves: of inputs, and of parameters
V_SHAPED = ("zbv", "dualpipev")  # of the two stages of a rank, the second is as far from the end as the first from 0


# Fields with a few values -> these, and whether None leaves the field open.
CHOICES: tuple[tuple[str, tuple[object, ...], bool], ...] = (
    ("zero", get_args(Zero), True),
    ("grouping", get_args(Grouping), False),
    ("schedule", get_args(Schedule), True),
    ("framework", get_args(Framework), False),
)


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """How a step is spread over ranks. Raises `ArgumentError` for a value that no model could use.

    `zero` is what fsdp divides. 3: parameters, gradients and optimiser state; parameters are freed after a layer's
    forward pass and gathered again for backward. 2: as 3, but parameters stay gathered from forward to backward. 1: as
    2, but each rank accumulates whole gradients over the micro-batches of a step, and they are reduced once, after the
    last one (Rajbhandari et al. 2020, arXiv 1910.02054, names the three stages). Pipelines reduce once too.

    With pp > 1 the layers are cut into pp x `stages_per_rank` stages. `stage_layers` are the layers of each stage in
    order; None: as even as can be, the spare layers to the first stages. The embedding is in the first stage; final
    norm, head, loss and multi-token prediction are in the last one.

    `grouping` says which parameters fully_shard gathers together. ``torchtitan``: the embedding; final norm and head,
    which stay gathered; each layer. ``layers``: each layer, and all other parameters in the group of the root.
    """

    num_gpus: int | None = None  # None: the product of the axes
    gpus_per_node: int | None = None  # None: `DEFAULT_GPUS_PER_NODE`, unless the catalogue says otherwise
    dp: int | None = None  # replicas; None: what is left of num_gpus
    fsdp: int = 1  # ranks over which fully_shard divides the states
    zero: Zero | None = None  # None: 3, or 1 with pp or megatron
    tp: int = 1  # ranks that divide every matrix of a layer, the heads and the vocabulary
    sequence_parallel: bool = True  # with tp: the residual stream and the norms are divided by position
    cp: int = 1  # ranks that divide the positions of each sequence
    ep: int = 1  # ranks that divide the experts
    pp: int = 1  # ranks that divide the layers
    schedule: Schedule | None = None  # of pp; None: `DEFAULT_SCHEDULE`
    stages_per_rank: int | None = None  # of pp; None: what the schedule needs
    stage_layers: tuple[int, ...] | None = None
    grouping: Grouping = "torchtitan"
    framework: Framework = "torch"  # whose rules say what is held; ``megatron`` is by formula
    expert_imbalance: float = 1.0  # rows of the busiest rank's experts, relative to the mean over the ranks

    def __post_init__(self) -> None:
        for field in ("num_gpus", "gpus_per_node", "dp"):
            if getattr(self, field) is not None:
                _check_ranks(field, getattr(self, field))
        for field in ("fsdp", "tp", "cp", "ep", "pp"):
            _check_ranks(field, getattr(self, field))
        for field, known, may_be_open in CHOICES:
            value = getattr(self, field)
            if value is None and may_be_open:
                continue
            if type(value) not in (int, str) or value not in known:
                raise ArgumentError(field, value, f"must be one of {', '.join(map(str, known))}")
        _check_stages(self.stages_per_rank, self.stage_layers)
        self._set_defaults()
        if not isinstance(self.sequence_parallel, bool):
            raise ArgumentError("sequence_parallel", self.sequence_parallel, "must be true or false")
        imbalance = self.expert_imbalance
        if isinstance(imbalance, bool) or not isinstance(imbalance, int | float) or not 1 <= imbalance <= MOST_GPUS:
            raise ArgumentError("expert_imbalance", imbalance, "must be at least 1, which is balanced routing")

    def _set_defaults(self) -> None:
        """Set the fields that have another default with pp or by Megatron-LM's rules."""
        defaults: dict[str, object] = {"zero": 1 if self.framework == "megatron" else 3}
        if self.pp > 1:
            schedule = self.schedule or DEFAULT_SCHEDULE
            defaults = {"zero": 1, "schedule": schedule, "stages_per_rank": 2 if schedule in SEVERAL_STAGES else 1}
        for field, value in defaults.items():
            if getattr(self, field) is None:
                msgspec.structs.force_setattr(self, field, value)

    @property
    def replicas(self) -> int:
        """dp; the layout must be resolved."""
        assert self.dp is not None
        return self.dp

    @property
    def data_ranks(self) -> int:
        """Ranks of one stage with different sequences: dp x fsdp. The layout must be resolved."""
        return self.replicas * self.fsdp

    @property
    def shards(self) -> int:
        """Ranks over which fully_shard divides the states of a stage: fsdp x cp."""
        return self.fsdp * self.cp

    @property
    def token_ranks(self) -> int:
        """Ranks of one stage with different tokens: dp x fsdp x cp. The layout must be resolved."""
        return self.replicas * self.shards

    @property
    def ranks_of_stage(self) -> int:
        """Ranks that run the same layers: all but pp. The layout must be resolved."""
        return self.token_ranks * self.tp

    @property
    def ranks(self) -> int:
        """All ranks; the layout must be resolved."""
        return self.ranks_of_stage * self.pp

    @property
    def stages(self) -> int:
        """Stages of the pipeline: pp x stages_per_rank. The layout must be resolved."""
        return self.pp * (self.stages_per_rank or 1)

    @property
    def is_sharded(self) -> bool:
        """Whether fully_shard is applied: wherever ranks have different tokens. The layout must be resolved."""
        return self.token_ranks > 1

    @property
    def expert_fsdp(self) -> int:
        """Ranks over which fully_shard divides a stack of experts: shards / ep, at least 1."""
        return max(self.shards // self.ep, 1)

    @property
    def expert_replicas(self) -> int:
        """Ranks of a stage that hold the same part of a stack of experts. The layout must be resolved."""
        return self.token_ranks // (self.ep * self.expert_fsdp)

    def stages_of_rank(self, pipeline_rank: int) -> tuple[int, ...]:
        """The numbers of the stages on one rank of pp, in their order. The layout must be resolved.

        The stages go round the ranks; with `V_SHAPED` schedules the second half goes back (Qi et al. 2024, arXiv
        2405.15362, fig. 4).
        """
        if self.schedule in V_SHAPED:
            return pipeline_rank, self.stages - 1 - pipeline_rank
        return tuple(range(pipeline_rank, self.stages, self.pp))


def _check_ranks(field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_GPUS:
        raise ArgumentError(field, value, f"must be a whole number from 1 to {MOST_GPUS}")


def _check_stages(stages_per_rank: object, stage_layers: object) -> None:
    if stages_per_rank is not None:
        value = stages_per_rank
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_STAGES_PER_RANK:
            rule = f"must be a whole number from 1 to {MOST_STAGES_PER_RANK}"
            raise ArgumentError("stages_per_rank", value, rule)
    if stage_layers is None:
        return
    if not isinstance(stage_layers, tuple) or not stage_layers:
        raise ArgumentError("stage_layers", stage_layers, "must be the numbers of layers of each stage")
    for value in stage_layers:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ArgumentError("stage_layers", value, "must be a whole number of layers, at least 1, of each stage")
