"""Measurements of parameters, FLOPs and bytes on the meta device.

`model` runs all measurements of one model; `probe` builds the measured modules, with one layer of each kind.

- `parameters` (numel), `trace` (forward FLOPs by fvcore), `forward` (single layers: FLOPs by dispatch, memory),
  `step` (a training step: FLOPs and memory) and `update` (gradient clipping, model states, the optimiser's step) are
  the witnesses; `optimizer` runs torch's optimisers;
- `dispatch` counts the FLOPs of every op per module, `live_bytes` follows storages, `components` assigns modules to
  components;
- `ops/`: FLOPs of dispatched ops; those of traced ops are in `trace`;
- `meta_device`: the only context in which the meta device behaves as CUDA would;
- `tools`: the same measurements for any user module.
"""
