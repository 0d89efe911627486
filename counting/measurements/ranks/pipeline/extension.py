"""The order of passes of a whole step from the orders of two shorter ones, which differ by a steady round."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from counting.measurements.ranks.pipeline.schedules import Order, Ran
from counting.ranks.pipeline import PipelineAction
from counting.ranks.profile import Traffic, Traffics

PassCounts = Counter[tuple[int, str]]  # how often: the number of a stage, and the key of a pass


class ExtendedOrder(NamedTuple):
    """The actions of the micro-batches that run, and what each further one adds."""

    actions: tuple[PipelineAction, ...]
    messages_after: int
    further_after: int
    traffic: Traffics  # of messages
    further_traffic: Traffics
    passes: PassCounts
    further_passes: PassCounts


def extended_order(order_of: Callable[[int], Order], run: int, more: int) -> ExtendedOrder:
    """The order of `run` micro-batches; `more` of them make a steady round. `order_of` gives the order of a number.

    The order with a round more begins as that of `run` micro-batches and, after the round, ends as it, with later
    micro-batches. The last steady round that both have stands after the additional one, where more messages are alive;
    what precedes it stands before. With `more` = 0 nothing is added to the step.
    """
    short = order_of(run)
    if not more:
        actions = tuple(_action(each, 0) for each in short.passes)
        return ExtendedOrder(actions, short.messages_after, 0, short.traffic, {}, _passes(short), Counter())
    long = order_of(run + more)
    added = len(long.passes) - len(short.passes)
    different = (place for place, each in enumerate(short.passes) if each[:4] != long.passes[place][:4])
    begin_alike = next(different, len(short.passes))

    def further(few: int, many: int) -> int:
        each, rest = divmod(many - few, more)
        assert not rest, "a round adds equally much for each of its micro-batches"
        return each

    def further_at(place: int) -> int:
        here, there = short.passes[place], long.passes[place + (added if place >= begin_alike - added else 0)]
        assert here[:2] == there[:2], "no steady round"
        return further(here.messages, there.messages)

    return ExtendedOrder(
        tuple(_action(each, further_at(place)) for place, each in enumerate(short.passes)),
        short.messages_after,
        further(short.messages_after, long.messages_after),
        short.traffic,
        {
            key: Traffic(
                calls=further(few.calls, many.calls),
                bytes_in=further(few.bytes_in, many.bytes_in),
                bytes_out=further(few.bytes_out, many.bytes_out),
            )
            for key, many in long.traffic.items()
            for few in [short.traffic.get(key, Traffic())]
        },
        _passes(short),
        _further_passes(short, long, further),
    )


def _action(one: Ran, further: int) -> PipelineAction:
    return PipelineAction(
        kind=one.kind,
        stage=one.stage,
        found=one.found,
        micro_batch=one.micro_batch,
        messages=one.messages,
        further=further,
    )


def _further_passes(short: Order, long: Order, further: Callable[[int, int], int]) -> PassCounts:
    """The passes of one more micro-batch, as those at the end of the step: what a later one finds changes no FLOPs."""
    few, many = (Counter((each.stage, each.kind) for each in order.passes) for order in (short, long))
    key_of = {(each.stage, each.kind): (each.stage, f"{each.kind} {each.found}") for each in short.passes}
    return Counter({key_of[key]: further(few[key], number) for key, number in many.items() if number != few[key]})


def _passes(order: Order) -> PassCounts:
    return Counter((each.stage, f"{each.kind} {each.found}") for each in order.passes)
