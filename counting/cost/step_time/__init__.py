"""How long a step takes: its work, laid out in time on a cluster. Three figures, each called what it is.

    time = step_time(work, setup, layout, cluster)

The bound is what no run beats, the estimate is what the catalogue's rates make of the work, and a calibrated prediction
is the estimate scaled by the user's own measured steps.
"""

from counting.cost.step_time.checks import check_cluster
from counting.cost.step_time.step import step_time
from counting.cost.step_time.trace import ChromeTrace, chrome_trace

__all__ = ["ChromeTrace", "check_cluster", "chrome_trace", "step_time"]
