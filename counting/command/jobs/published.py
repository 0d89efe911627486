"""Published figures, worked out again with progress."""

from typing import TYPE_CHECKING

from counting.command.progress import Progress

if TYPE_CHECKING:
    from counting.published.claim import Claim
    from counting.published.memory import ExaminedMemory
    from counting.published.runs import ExaminedRun
    from counting.published.throughput import Throughput


def published_bills(progress: Progress) -> "tuple[ExaminedRun, ...]":
    """Bills of published runs."""
    from counting.published.runs import examine, load_published_runs

    runs, examined = load_published_runs(), []
    for number, run in enumerate(runs, start=1):
        progress.show(f"working out {run.name} ({number} of {len(runs)}) ...")
        examined.append(examine(run))
    return tuple(examined)


def published_memory(progress: Progress) -> "tuple[ExaminedMemory, ...]":
    """Memory of published steps."""
    from counting.published.memory import examine_memory, load_published_memory

    rows, examined = load_published_memory(), []
    for number, row in enumerate(rows, start=1):
        progress.show(f"running {row.name} ({number} of {len(rows)}) ...")
        examined.append(examine_memory(row))
    return tuple(examined)


def published_throughput(progress: Progress) -> "Throughput":
    """Times of published steps."""
    from counting.published.throughput import examine_throughput, load_published_throughput, summed_up

    rows, examined = load_published_throughput().rows, []
    for number, row in enumerate(rows, start=1):
        progress.show(f"running {row.name} ({number} of {len(rows)}) ...")
        examined.append(examine_throughput(row))
    return summed_up(examined)


def claim_of_bill(progress: Progress) -> "Claim":
    """The claim about DeepSeek-V3's bill."""
    from counting.published.claim import examine_claim

    progress.show("working out the claim ...")
    return examine_claim()
