"""What a step does op by op, measured: each dispatched op with the tensors that it reads and writes.

`Recorder` is one more observer of the ops that a tracker of live bytes sees. Between two cuts it keeps a `RawStretch`,
and `summarise` makes of it what a model of time takes. `accesses` says which tensors an op reads and writes, `shapes`
what an op multiplies.
"""

from counting.measurements.work.recorder import Recorder
from counting.measurements.work.records import RawOp, RawStretch, Touch, summarise, touched_bytes

__all__ = ["RawOp", "RawStretch", "Recorder", "Touch", "summarise", "touched_bytes"]
