"""The order of passes of a whole step from the orders of two shorter ones, which differ by a steady round."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from counting.measurements.ranks.pipeline.schedules import Order, Ran
from counting.ranks.pipeline import PipelineAction
from counting.ranks.profile import Traffic, Traffics

Passes = Counter[tuple[int, str]]  # how often: the number of a stage, and the key of a pass


class ExtendedOrder(NamedTuple):
    """The actions of the micro-batches that run, and what each further one adds."""

    actions: tuple[PipelineAction, ...]
    messages_after: int
    further_after: int
    traffic: Traffics  # of messages
    further_traffic: Traffics
    passes: Passes
    further_passes: Passes


def extended_order(order_of: Callable[[int], Order], run: int, more: int, *, has_rounds: bool) -> ExtendedOrder:
    """The order of `run` micro-batches; `more` of them make a steady round. `order_of` gives the order of a number.

    The order with a round more begins as that of `run` micro-batches, and ends as it, with later micro-batches. An
    action that could stand on either side of the additional round stands after it, where more messages are alive. A
    schedule that has no rounds (gpipe) is not extended; there the first pass backward may be compared with the second.
    """
    short, long = order_of(run), order_of(run + more)
    added = len(long.passes) - len(short.passes)
    alike = _alike_at_the_end(short.passes, long.passes, more, has_rounds)
    first = len(short.passes) - alike
    assert [each[:4] for each in short.passes[:first]] == [each[:4] for each in long.passes[:first]], "no steady round"

    def further(few: int, many: int) -> int:
        each, rest = divmod(many - few, more)
        assert not rest, "a round adds equally much for each of its micro-batches"
        return each

    actions = tuple(
        PipelineAction(
            kind=each.kind,
            stage=each.stage,
            found=each.found,
            micro_batch=each.micro_batch,
            messages=each.messages,
            further=further(each.messages, long.passes[place + (added if place >= first else 0)].messages),
        )
        for place, each in enumerate(short.passes)
    )
    return ExtendedOrder(
        actions,
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


def _further_passes(short: Order, long: Order, further: Callable[[int, int], int]) -> Passes:
    """The passes of one more micro-batch, as those at the end of the step: what a later one finds changes no FLOPs."""
    few, many = (Counter((each.stage, each.kind) for each in order.passes) for order in (short, long))
    key_of = {(each.stage, each.kind): (each.stage, f"{each.kind} {each.found}") for each in short.passes}
    return Counter({key_of[key]: further(few[key], number) for key, number in many.items() if number != few[key]})


def _alike_at_the_end(short: Sequence[Ran], long: Sequence[Ran], more: int, compares_found: bool) -> int:
    """How many passes at the end are the same, of micro-batches that are `more` further."""
    alike = 0
    while alike < len(short):
        few, many = short[-1 - alike], long[-1 - alike]
        moved = None if few.micro_batch is None else few.micro_batch + more
        if (few.kind, few.stage, moved) != (many.kind, many.stage, many.micro_batch):
            break
        if compares_found and few.found != many.found:
            break
        alike += 1
    return alike


def _passes(order: Order) -> Passes:
    return Counter((each.stage, f"{each.kind} {each.found}") for each in order.passes)
