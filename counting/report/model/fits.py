"""The table of the GPUs on which a training step fits."""

from collections.abc import Sequence

from counting.analysis.result import Proof
from counting.report.format import integer
from counting.report.screen.fits import remedy_in_words
from counting.report.tables import Table, rows_table
from counting.setup import Setup
from counting.step.fit import Fit

CAPTION = (
    "Needed: the most bytes that the caching allocator reserves, an estimate or, where that is not worked out, the "
    "peak of the bytes that the step allocates, without workspaces within kernels; and the CUDA context if its size is "
    "known. Capacity: the memory of one device that the driver reports if that is known, else the vendor's figure, one "
    "GB taken as 2^30 bytes. A board with two dies is two devices. Fits with: the cheapest change of recomputation or "
    "loss chunk with which the step fits, {found_by}; what it needs beyond its allocated bytes is taken to be the same."
)
OF_EAGER = (
    " Eager: by simulation too, where PyTorch has no fused attention with grouped queries (in fp32, or below CUDA's "
    "compute capability 8.0)."
)
OF_A_RANK = " Communicators: one for each axis over which the rank sends; 0 where their buffers are not known."


def fits_table(fits: Sequence[Fit], setup: Setup, proof: Proof) -> Table:
    """A row for each GPU, in bytes; `proof` is that of the analysis."""
    reserved = any(fit.reserved_bytes is not None for fit in fits)
    headings = ["GPU", "fits", "allocated", *(["reserved"] if reserved else []), "needed", "capacity", "left"]
    remedied = any(fit.remedies for fit in fits)
    headings += ["fits with", "needing then"] if remedied else []
    spread = any(fit.rank is not None for fit in fits)
    title = f"{'The worst rank on' if spread else 'On'} one device of each GPU, bytes"
    table = rows_table(title, headings, names=2)
    for fit in fits:
        cheapest = fit.remedies[0] if fit.remedies else None
        sizes = (fit.needed_bytes, fit.capacity_bytes, fit.spare_bytes)
        of_step: list[str] = [integer(fit.allocated_bytes)]
        if reserved:
            of_step.append("" if fit.reserved_bytes is None else integer(fit.reserved_bytes))
        remedy = (remedy_in_words(cheapest, setup), integer(cheapest.needed_bytes)) if cheapest else ("", "")
        answer = "yes" if fit.fits else "no"
        row = [fit.gpu, answer if fit.kernels == setup.kernels else f"{answer} (eager)", *of_step]
        row += [*map(integer, sizes), *remedy]
        table.add_row(*row[: len(headings)])
    measured = proof == "measured, no formula"
    found_by, of_eager = ("measured as the step is", "") if measured else ("by formula and simulation", OF_EAGER)
    table.caption = f"{CAPTION.format(found_by=found_by)}{of_eager}{OF_A_RANK if spread else ''}"
    return table
