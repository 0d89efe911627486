"""The cost of training an analysed model. The modules take an `Analysis`; they measure nothing themselves.

`hardware` (the GPU catalogue), `fits` (whether a step fits a GPU's memory), `conventions` (training FLOPs as papers
count them), `run` (tokens to hours and dollars), `comparison`, `budget` and `budget_on_model`, `scaling_laws`,
and `design` (an architecture of a given size, or for a budget).
"""
