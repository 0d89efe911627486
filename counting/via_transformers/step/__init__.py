"""A training step of a model that transformers built, measured with one layer of each kind, as native ones are.

- `layers` says which layers run, and how many layers of the model each of them stands for;
- `to_run` is the model as `counting.measurements.step` runs it: its loss, its cuts between layers, its recomputation;
- `measure` runs it, and adds what follows backward: gradient clipping and the optimiser's update;
- `result` is what is said of it: its FLOPs, its memory extended to all layers, and the same with other settings.
"""
