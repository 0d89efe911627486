"""What a caching allocator is asked for in a training step: every allocation and release of the whole model, in order.

`log_of_step` is that of one device; `ranks` has that of a rank.
"""

from counting.measurements.allocations.steps import log_of_step

__all__ = ["log_of_step"]
