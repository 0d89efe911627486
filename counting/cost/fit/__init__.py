"""A scaling law fitted to a user's own training runs.

`table`, `columns` (runs in a file), `runs` (what they must be), `parametric` (approach 3 of Hoffmann et al. 2022, with
`objective` and `minimiser`), `budgets`, `isoflop` (approach 2), `doubts`, `fitting` (all together), `result`.
"""

from counting.cost.fit.fitting import fit_law
from counting.cost.fit.result import FittedLaw
from counting.cost.fit.runs import TrainedRun
from counting.cost.fit.table import read_runs

__all__ = ["FittedLaw", "TrainedRun", "fit_law", "read_runs"]
