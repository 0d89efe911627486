"""Measures the machine at hand, a CPU or a CUDA device: products, attention, ops by bytes, launches, collectives.

    found = measure_machine(seconds=120)

A file for each kind of op; `clock` times calls, `ranks` joins the processes that torchrun has started.
"""

from counting.calibration.machine.measure import device_here, measure_machine
from counting.calibration.machine.ranks import Ranks, joined_ranks

__all__ = ["Ranks", "device_here", "joined_ranks", "measure_machine"]
