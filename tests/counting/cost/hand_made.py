"""A machine of round numbers and steps of two layers, made by hand."""

from msgspec import structs

from counting.cost.cluster import Calibration, Cluster
from counting.cost.hardware import find_gpu
from counting.cost.rates import GpuRates, Link, ProductRates
from counting.ranks.profile import Traffic, Traffics
from counting.setup import Setup
from counting.work import Op, OrderedPass, PassWork, RankWork, StageWork, StepWork, StretchWork

TERA, GIGA = 10**12, 10**9
SETUP = Setup(sequence_length=1000, micro_batches=1)
ROUND = GpuRates(
    bf16=ProductRates(best_tflop_per_s=2, sustained_tflop_per_s=1, source="round numbers"),
    memory_bandwidth_share=0.5,
    memory_bandwidth_source="round numbers",
    launch_seconds=0,
    launch_source="round numbers",
    beside_collectives_share=0.5,
    beside_collectives_source="round numbers",
    node_link=Link(gb_per_s=2, achieved_gb_per_s=1, latency_seconds=0),
    network_link=Link(gb_per_s=2, achieved_gb_per_s=1, latency_seconds=0),
)


def cluster(rates: GpuRates = ROUND, calibration: Calibration | None = None) -> Cluster:
    """1 TFLOP/s sustained of 2 at best and 4 at the peak; 0.5 TB/s of 1; links of 1 GB/s of 2."""
    gpu = structs.replace(
        find_gpu("H100"), name="round", peak_dense_tflop_per_s=4, memory_bandwidth_tb_per_s=1, rates=rates
    )
    return Cluster(gpu=gpu, calibration=calibration)


def products(seconds: float) -> Op:
    """Products that take so long when sustained, and half of that at best."""
    flops = round(seconds * TERA)
    return Op(kind="product", name="mm", flops=flops, computed_flops=flops, shape=(1, 1, 1, flops // 2))


def copies(seconds: float) -> Op:
    """An op by bytes that takes so long, and half of that at the printed bandwidth."""
    return Op(kind="memory", name="add", bytes_read=round(seconds * TERA / 2))


def gathered(seconds: float, phase: str = "forward") -> Traffics:
    """An all-gather over two ranks, which receive half of the whole at 1 GB/s."""
    size = round(seconds * 2 * GIGA)
    return {f"{phase} all_gather fsdp": Traffic(calls=1, bytes_in=size // 2, bytes_out=size)}


def reduced(seconds: float) -> Traffics:
    """A reduce-scatter over two ranks."""
    size = round(seconds * 2 * GIGA)
    return {"backward reduce_scatter fsdp": Traffic(calls=1, bytes_in=size, bytes_out=size // 2)}


def sharded_step(micro_batches: int = 1, scale: float = 1) -> StepWork:
    """A step of two layers on two ranks of fsdp, with `scale` times the tokens of `tests/.../test_streams.py`."""
    stage = StageWork(
        stage=0,
        runs=((0, 2),),
        passes={
            "forward": PassWork(
                before=StretchWork(ops=(copies(1 * scale),), traffic=gathered(2)),
                layers=(StretchWork(ops=(products(4 * scale),), traffic=gathered(3)),),
            ),
            "backward": PassWork(
                before=StretchWork(ops=(products(5 * scale),), traffic=gathered(1) | gathered(3, "backward")),
                layers=(StretchWork(ops=(products(8 * scale),), traffic=gathered(3, "backward") | reduced(6)),),
                after=StretchWork(ops=(copies(1 * scale),), traffic=reduced(2)),
                ascending=False,
            ),
        },
    )
    order = [
        OrderedPass(kind=kind, key=kind, stage=0, micro_batch=number)  # type: ignore[arg-type]
        for number in range(min(micro_batches, 3))
        for kind in ("forward", "backward")
    ]
    rank = RankWork(pipeline_rank=0, stages=(stage,), order=tuple(order), optimizer=StretchWork(ops=(copies(2),)))
    return StepWork(ranks=(rank,), micro_batches=micro_batches)


def without_traffic(work: StepWork) -> StepWork:
    """A step of one device: its ops alone."""

    def ops(stretch: StretchWork) -> StretchWork:
        return structs.replace(stretch, traffic={})

    def of_pass(one: PassWork) -> PassWork:
        return structs.replace(one, before=ops(one.before), layers=tuple(map(ops, one.layers)), after=ops(one.after))

    (rank,) = work.ranks
    stage = structs.replace(rank.stages[0], passes={key: of_pass(one) for key, one in rank.stages[0].passes.items()})
    return structs.replace(work, ranks=(structs.replace(rank, stages=(stage,)),))


def pipeline_step(stages: int, micro_batches: int, *, traffic: Traffics | None = None, message: int = 0) -> StepWork:
    """1F1B over equal stages of one layer: 1 s forward, 2 s backward; the update takes 2 s."""
    ranks = []
    for number in range(stages):
        stage = StageWork(
            stage=number,
            runs=((0, 1),),
            passes={
                "forward": PassWork(layers=(StretchWork(ops=(products(1),), traffic=traffic or {}),)),
                "backward": PassWork(layers=(StretchWork(ops=(products(2),)),), ascending=False),
            },
            message_bytes=(message if number < stages - 1 else 0, message if number else 0),
        )
        warm_up = min(stages - 1 - number, micro_batches)
        order = [("forward", batch) for batch in range(warm_up)]
        for batch in range(micro_batches):
            order += [("forward", batch + warm_up)] if batch + warm_up < micro_batches else []
            order.append(("backward", batch))
        passes = tuple(
            OrderedPass(kind=kind, key=kind, stage=number, micro_batch=batch)  # type: ignore[arg-type]
            for kind, batch in order
        )
        update = StretchWork(ops=(copies(2),))
        ranks.append(RankWork(pipeline_rank=number, stages=(stage,), order=passes, optimizer=update))
    return StepWork(ranks=tuple(ranks), micro_batches=micro_batches)
