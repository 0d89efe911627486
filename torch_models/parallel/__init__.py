"""A `Layout` applied to the modules with torch's own fully sharded, tensor, expert and context parallelism.

Private interfaces of torch that are used here, tried with torch 2.13.0; `tests/torch_models/parallel/test_private.py`
fails when there is a public one:

- `ParallelStyle._apply`, which a style of its own has to define (block, norm, parameters, vocabulary);
- `DeviceMesh._unflatten`: the same ranks by other dimensions (mesh);
- `_StridedShard`: equal parts of each of several stacked matrices (tensor);
- `_functional_collectives`: collectives that autograd follows (experts), or that return a new tensor (norm);
- `experimental._attention`: ring attention over DTensor, which one switches on for the process (context);
- `Module._parameters`: a module computes with plain tensors in place of its parameters (parameters).

Nothing is imported here: torch's DTensor, which all of it needs, takes half as long to import as torch.
"""
