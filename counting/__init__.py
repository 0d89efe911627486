"""What a model costs: counts measured on modules, formulas that prove them, and what a budget buys."""
