"""What a spec says in closed form, without torch and blind to the modules.

`parameters`, `flops` (forward and of a training step), `held` (what a forward pass keeps), `states` (what lasts from
step to step), `kv_cache`; `model` puts them together as the witness of a whole model. `memory/` is a simulation of
autograd, the witness of peaks, and no closed form.
"""
