"""The rules of a pipeline: what its stages need of the schedule, the model and the micro-batches. Torch-free.

The schedules are those of torch.distributed.pipelining (`schedules.py` of torch 2.13), and so are their rules.
"""

from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import NamedTuple, NoReturn

import msgspec

from counting.setup import Setup
from torch_models.errors import ArgumentError
from torch_models.layout import HALVED, SEVERAL_STAGES, V_SHAPED, Layout
from torch_models.spec import GroupedQueryAttentionSpec, LayerSpec, MixtureOfExpertsSpec, ModelSpec
from torch_models.stages import even_stages

MOST_STAGES_SHOWN = 16  # of a list of the layers of all stages


def _any(_micro_batches: int, _layout: Layout) -> bool:
    return True


def _as_many_as_stages(micro_batches: int, layout: Layout) -> bool:
    return micro_batches >= layout.stages


def _equal_rounds(micro_batches: int, layout: Layout) -> bool:
    """Whether they go round in equal rounds of pp or more, as many rounds as can be; fewer than pp are one round."""
    return micro_batches % _rounds(micro_batches, layout) == 0


def _rounds(micro_batches: int, layout: Layout) -> int:
    return max(micro_batches // layout.pp, 1)


class ScheduleRule(NamedTuple):
    """The class of torch that runs a schedule, and which numbers of micro-batches of a layout it takes."""

    torch_class: str
    takes: Callable[[int, Layout], bool]


SCHEDULE_RULES: dict[str, ScheduleRule] = {
    "gpipe": ScheduleRule("ScheduleGPipe", _any),
    "1f1b": ScheduleRule("Schedule1F1B", _as_many_as_stages),
    "interleaved": ScheduleRule("ScheduleInterleaved1F1B", _equal_rounds),
    "zb": ScheduleRule("ScheduleInterleavedZeroBubble", _equal_rounds),
    "zbv": ScheduleRule("ScheduleZBVZeroBubble", _any),
    "dualpipev": ScheduleRule("ScheduleDualPipeV", _as_many_as_stages),
}


def check_stages(layout: Layout, spec: ModelSpec) -> None:
    """Raise `ArgumentError` if the pipeline is none, or does not go with its schedule or with the model."""
    if layout.pp == 1:
        for field in ("schedule", "stages_per_rank", "stage_layers"):
            value = getattr(layout, field)
            if value is not None:
                shown = _joined(value) if isinstance(value, tuple) else value
                _refuse(field, shown, "is of a pipeline, and pp is 1: leave it out, or give pp")
        return
    _check_stages_per_rank(layout)
    if layout.framework == "torch":
        _check_torch(layout, spec)
    _check_layers(layout, spec)


def _check_torch(layout: Layout, spec: ModelSpec) -> None:
    """Raise `ArgumentError` for what torch's schedules do not do."""
    if layout.zero != 1:
        rule = (
            "must be 1 with pp: torch's schedules reduce gradients once a step, and free no parameters between passes; "
            "leave it out"
        )
        _refuse("zero", layout.zero, rule)
    if spec.tie_word_embeddings:
        rule = (
            f"is refused for {spec.name}, whose head is its embedding: the first and the last stage would each have a "
            "copy, and torch's schedules do not add their gradients up; leave it out"
        )
        _refuse("pp", layout.pp, rule)


def with_stages(layout: Layout, spec: ModelSpec) -> Layout:
    """The layout with the layers of each stage set, where it has a pipeline."""
    if layout.pp == 1 or layout.stage_layers is not None:
        return layout
    return msgspec.structs.replace(layout, stage_layers=even_stages(spec.num_layers, layout.stages))


def check_micro_batches(layout: Layout, setup: Setup) -> None:
    """Raise `ArgumentError` if the schedule does not take so many micro-batches; layout and setup are resolved."""
    if layout.pp == 1:
        return
    assert setup.micro_batches is not None and layout.schedule is not None
    several = layout.is_sharded and layout.schedule in ("interleaved", "zb") and layout.stages_per_rank != 2
    if several and setup.micro_batches > MOST_THAT_ALL_RUN:
        rule = (
            f"must be at most {MOST_THAT_ALL_RUN} with fsdp and {layout.stages_per_rank} stages on each rank, where "
            "all of them are run: give fewer, or stages_per_rank 2"
        )
        _refuse("micro_batches", setup.micro_batches, rule)
    if layout.schedule == "gpipe" and setup.micro_batches > MOST_THAT_ALL_RUN:
        rule = (
            f"must be at most {MOST_THAT_ALL_RUN} with schedule gpipe, where all of them wait for backward at once: "
            "give fewer, or schedule 1f1b"
        )
        _refuse("micro_batches", setup.micro_batches, rule)
    of_schedule = SCHEDULE_RULES[layout.schedule]
    if of_schedule.takes(setup.micro_batches, layout):
        return
    numbers = list(_nearest(setup.micro_batches, lambda number: of_schedule.takes(number, layout)))
    if of_schedule.takes is _as_many_as_stages:
        why, more = f"needs at least as many as stages ({layout.stages})", " or more"
    else:
        why, more = f"runs them in {_rounds(setup.micro_batches, layout)} equal rounds of pp ({layout.pp}) or more", ""
    of_step = [number * setup.tokens * layout.data_ranks for number in numbers]
    rule = (
        f"torch's {of_schedule.torch_class} {why}: give {_or(numbers)}{more}, or global_batch_tokens of "
        f"{_or(of_step)}{more}"
    )
    _refuse("micro_batches", setup.micro_batches, rule)


MOST_THAT_ALL_RUN = 256  # micro-batches
IN_FP32 = 4  # bytes of a number
ENDS_WITH_HALVES = ("zb", "zbv")  # in the last stage too


def check_halves(layout: Layout, setup: Setup, spec: ModelSpec) -> None:
    """Raise `ArgumentError` for what torch does not do when it computes the gradients of parameters apart.

    And for what has no formula there: the collectives of tp that the second half calls again, experts computed in
    fp32, and attention with sinks in a checkpoint.
    """
    if layout.schedule in HALVED:
        _check_parts_of_halves(layout, setup, spec)
    if layout.schedule in HALVED and layout.tp > 1:
        again = {
            "loss_chunk": (setup.loss_chunk, setup.loss_chunk is not None),
            "mtp": (True, bool(setup.mtp) and setup.recompute != "none"),
            "tp": (layout.tp, any(_has_width_norm(layer) for layer, _ in spec.layer_groups())),
        }
        for field, (value, refused) in again.items():
            if refused:
                rule = (
                    f"is refused with tp ({layout.tp}) and schedule {layout.schedule}, which runs backward in two "
                    "halves: what tp sends in the second one has no formula; leave it out, or give schedule interleaved"
                )
                _refuse(field, value, rule)
    if layout.schedule in HALVED and setup.recompute == "per_op":
        rule = (
            f"is refused with schedule {layout.schedule}, which runs backward in two halves: torch's selective "
            "checkpointing takes one; give full, selective or none"
        )
        _refuse("recompute", "per_op", rule)
    if layout.schedule in HALVED and setup.mtp and not layout.is_sharded:
        rule = (
            f"is refused with schedule {layout.schedule} on one rank for each stage: torch computes the gradients of "
            "embedding and prediction layer together there; leave multi-token prediction out, or give fsdp"
        )
        _refuse("mtp", True, rule)
    if layout.schedule in HALVED and setup.mtp and len(spec.mtp_layers) > 1:
        rule = (
            f"is refused with schedule {layout.schedule} for {len(spec.mtp_layers)} prediction layers: backward in two "
            "halves would run through the graph of one of them twice; leave multi-token prediction out"
        )
        _refuse("mtp", True, rule)
    if layout.pp > 1 and setup.mtp and not layout.is_sharded and setup.precision_recipe.gradients_apart:
        rule = (
            f"is refused with precision {setup.precision} and pp without fsdp: the exchange of the embedding's "
            "gradients is not measured in that format; leave multi-token prediction out, or give precision mixed"
        )
        _refuse("mtp", True, rule)
    mixed = layout.is_sharded and setup.precision_recipe.master_bytes > 0
    if layout.schedule in ENDS_WITH_HALVES and setup.mtp and mixed:
        rule = (
            f"is refused with schedule {layout.schedule} and fsdp in mixed precision: half of a backward pass makes "
            "fully_shard convert some gradients of a prediction layer, and it reduces those of one format alone; "
            "leave multi-token prediction out, or give schedule dualpipev or interleaved"
        )
        _refuse("mtp", True, rule)


def _check_parts_of_halves(layout: Layout, setup: Setup, spec: ModelSpec) -> None:
    """Raise `ArgumentError` for what no formula says of the halves of backward, whatever divides the model."""
    layers = [layer for layer, _ in spec.layer_groups()] + list(spec.mtp_layers if setup.mtp else ())
    in_halves = f"schedule {layout.schedule}, which runs backward in two halves"
    has_experts = any(isinstance(layer.feed_forward, MixtureOfExpertsSpec) for layer in layers)
    if has_experts and setup.precision_recipe.activation_bytes == IN_FP32:
        rule = (
            f"is refused for experts with {in_halves}: what the second one computes of them in fp32 has no formula; "
            "leave it out, or give schedule interleaved"
        )
        _refuse("precision", setup.precision, rule)
    sinks_again = any(_has_sinks(layer) and layer.recompute_in(setup.recompute) == "selective" for layer in layers)
    if sinks_again and setup.kernels == "fused":
        rule = (
            f"is refused for attention with sinks and {in_halves}: what the second one recomputes in fused kernels has "
            "no formula; leave it out, or give kernels eager, or schedule interleaved"
        )
        _refuse("recompute", setup.recompute, rule)


def _check_stages_per_rank(layout: Layout) -> None:
    each, schedule = layout.stages_per_rank, layout.schedule
    assert each is not None and schedule is not None
    if schedule in V_SHAPED and each != 2:
        _refuse("stages_per_rank", each, f"must be 2 with schedule {schedule}: leave it out")
    if schedule in SEVERAL_STAGES and each < 2:
        rule = f"must be 2 or more with schedule {schedule}: leave it out, or give schedule 1f1b or gpipe"
        _refuse("stages_per_rank", each, rule)
    if schedule not in SEVERAL_STAGES and each != 1:
        _refuse("stages_per_rank", each, f"must be 1 with schedule {schedule}: leave it out, or give interleaved or zb")


def _check_layers(layout: Layout, spec: ModelSpec) -> None:
    """Raise `ArgumentError` if the layers do not go into the stages."""
    layers, stages = spec.num_layers, layout.stages
    each = layout.stages_per_rank or 1
    if layers < stages:
        of = f"makes {stages} stages" if each == 1 else f"makes {stages} stages with {each} on each rank"
        most = layers // each
        instead = f"give at most {most}" if most > 1 else "leave it out"
        _refuse("pp", layout.pp, f"{of}, and {spec.name} has {layers} layers, of which each stage needs one: {instead}")
    if layout.stage_layers is None:
        return
    shown = _joined(layout.stage_layers)
    instead = f": leave it out for {_joined(even_stages(layers, stages))}" if stages <= MOST_STAGES_SHOWN else ""
    if len(layout.stage_layers) != stages:
        of = f"pp ({layout.pp})" if each == 1 else f"pp x stages_per_rank = {layout.pp} x {each} = {stages}"
        rule = f"has the layers of {len(layout.stage_layers)} stages, and there must be {of}{instead}"
        _refuse("stage_layers", shown, rule)
    if (total := sum(layout.stage_layers)) != layers:
        _refuse("stage_layers", shown, f"are {total} layers together, and {spec.name} has {layers}{instead}")


def _nearest(value: int, does: Callable[[int], bool]) -> Iterator[int]:
    """The nearest number below `value` that does, if any, and the nearest above it."""
    yield from islice(filter(does, range(value - 1, 0, -1)), 1)
    yield from islice(filter(does, count(value + 1)), 1)


def _joined(numbers: tuple[int, ...]) -> str:
    return ",".join(map(str, numbers))


def _or(numbers: list[int]) -> str:
    return " or ".join(map(str, numbers))


def _refuse(field: str, value: object, rule: str) -> NoReturn:
    raise ArgumentError(field, value, rule)


def _has_width_norm(layer: LayerSpec) -> bool:
    """Whether queries and keys have a norm over the width of all heads, whose sums ranks of tp add up."""
    attention = layer.attention
    return isinstance(attention, GroupedQueryAttentionSpec) and attention.query_key_norm == "width"


def _has_sinks(layer: LayerSpec) -> bool:
    attention = layer.attention
    return isinstance(attention, GroupedQueryAttentionSpec) and attention.sinks
