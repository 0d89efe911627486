"""What the modules say of parameters, FLOPs and bytes, on the meta device.

`model` asks all of it of one model; `probe` builds what is measured, one layer of each kind.

- `parameters` (numel), `trace` (forward FLOPs, fvcore's), `forward` (single layers: FLOPs by dispatch, memory),
  `step` (a training step: FLOPs and memory) and `optimizer` (its states and its update) are the witnesses;
- `dispatch` counts every op for the module it runs for, `live_bytes` follows storages, `components` sorts modules
  into rows;
- `ops/`: FLOPs of dispatched ops; those of traced ops stand in `trace`;
- `meta_device`: the one context in which the meta device behaves as CUDA would;
- `tools`: the same for any module of a user's own.
"""
