"""The streams against a simulation in small steps of time, which knows no events: the same rules, written anew."""

import random
from dataclasses import dataclass, field

import pytest

from counting.cost.step_time.streams import OnLink, TimedStretch, lay_out_pass

SMALL = 1e-3
LINKS = ("node_link", "network_link")


@dataclass
class Called:
    link: str
    left: float
    after: list["Called"] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        return self.left <= SMALL / 2


class Simulation:
    """Time passes in steps of `SMALL`; each link serves the first of its calls that has not ended."""

    def __init__(self, share: float) -> None:
        self.share = share
        self.now = 0.0
        self.calls: list[Called] = []

    def call(self, collectives: tuple[OnLink, ...], after: list[Called]) -> list[Called]:
        called = [Called(each.link, each.seconds, after) for each in collectives if each.seconds > 0]
        self.calls += called
        return called

    def serve(self, free: dict[str, float]) -> bool:
        """One step, in which each link is free for a part of the time; returns whether any served."""
        served = False
        for link in LINKS:
            waiting = [one for one in self.calls if one.link == link and not one.ended]
            if waiting and all(one.ended for one in waiting[0].after):
                waiting[0].left -= SMALL * free[link]
                served = True
        self.now += SMALL
        return served

    def runs(self) -> bool:
        for link in LINKS:
            waiting = [one for one in self.calls if one.link == link and not one.ended]
            if waiting and all(one.ended for one in waiting[0].after):
                return True
        return False

    def wait(self, called: list[Called]) -> None:
        while not all(one.ended for one in called):
            self.serve(dict.fromkeys(LINKS, 1.0))

    def compute(self, stretch: TimedStretch) -> None:
        in_place = {link: sum(each.seconds for each in stretch.in_place if each.link == link) for link in LINKS}
        alone = stretch.products + stretch.attention + stretch.memory + sum(in_place.values())
        beside = alone - stretch.products + stretch.products / self.share
        done = 0.0
        while done < 1:
            length = beside if self.runs() else alone
            self.serve({link: 1 - in_place[link] / length for link in LINKS})
            done += SMALL / length


def simulated(stretches: list[TimedStretch], share: float) -> float:
    simulation = Simulation(share)
    needed = simulation.call(stretches[0].gathers, [])
    reducing: list[Called] = []
    for stretch, following in zip(stretches, [*stretches[1:], TimedStretch()], strict=True):
        simulation.wait(needed)
        beside = simulation.call(stretch.beside, [])
        needed = simulation.call((*stretch.prefetches, *following.gathers), [])
        simulation.compute(stretch)
        simulation.wait(beside)
        simulation.wait(reducing)
        reducing = simulation.call(stretch.reductions, [])
        simulation.call(stretch.all_reduces, reducing)
    simulation.wait(simulation.calls)
    return simulation.now


def some_stretch(numbers: random.Random) -> TimedStretch:
    def some(axis: str, most: float) -> tuple[OnLink, ...]:
        seconds = numbers.choice((0.0, numbers.random() * most))
        return (OnLink(axis, numbers.choice(LINKS), seconds),)  # type: ignore[arg-type]

    return TimedStretch(
        products=0.1 + numbers.random(),
        attention=numbers.random() / 2,
        memory=numbers.random() / 2,
        in_place=some("tp", 0.5) + some("cp", 0.5),
        beside=some("ep", 0.5),
        gathers=some("fsdp", 1.5),
        prefetches=some("fsdp", 1.5),
        reductions=some("fsdp", 1.5),
        all_reduces=some("dp", 1.5),
    )


@pytest.mark.parametrize("seed", range(12))
def test_events_give_what_small_steps_give(seed: int) -> None:
    """Each wait and each stretch ends up to a step late: 30 steps of 1 ms of the 10 s or so of six stretches."""
    numbers = random.Random(seed)
    stretches = [some_stretch(numbers) for _ in range(6)]
    share = numbers.choice((0.43, 0.84, 1.0))
    found = lay_out_pass([(stretch, 1) for stretch in stretches], share).seconds
    assert found == pytest.approx(simulated(stretches, share), abs=0.03)
