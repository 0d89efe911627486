"""Which runs are of one compute budget."""

from collections.abc import Sequence

from counting.cost.fit.runs import ONE_BUDGET, TrainedRun

FEWEST_SIZES = 3  # of a budget: a parabola has three constants
FEWEST_BUDGETS = 3  # of power laws: two points have no line that could be wrong
_FEWEST_RUNS = 4  # of a budget, so that its parabola can be wrong too


def repeated_budgets(runs: Sequence[TrainedRun]) -> tuple[tuple[TrainedRun, ...], ...]:
    """The groups of at least `_FEWEST_RUNS` runs whose C are within a factor `ONE_BUDGET`, from the smallest C.

    The window of that width with the most runs is the first group; the next one is found among the others, and so on.
    Of windows with as many runs, that of the smallest C is taken.
    """
    left = sorted(runs, key=lambda run: (run.training_flops, run.line))
    groups: list[tuple[TrainedRun, ...]] = []
    while True:
        first, last = _fullest(left)
        if last - first < _FEWEST_RUNS:
            return tuple(sorted(groups, key=lambda group: group[0].training_flops))
        groups.append(tuple(left[first:last]))
        del left[first:last]


def _fullest(ordered: Sequence[TrainedRun]) -> tuple[int, int]:
    """The first and the last place of the window with the most runs, the last one excluded."""
    best, first = (0, 0), 0
    for last, run in enumerate(ordered, start=1):
        while run.training_flops > ONE_BUDGET * ordered[first].training_flops:
            first += 1
        if last - first > best[1] - best[0]:
            best = (first, last)
    return best
