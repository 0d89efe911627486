"""Closed-form counts from a spec, without torch and without reading the modules.

`parameters`, and the shapes of their `tensors`; `flops` of a forward pass and of a training step; `held`, the bytes
that a forward pass keeps for backward; `states`, the bytes of model states, inputs and buffers; `kv_cache`. `model`
combines them for a whole model, as an independent check of the measured counts. `local/` has the part of a layer that
a rank has, and what it keeps for backward. `memory/` is not in closed form: it simulates autograd and checks peaks.
"""
