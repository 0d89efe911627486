"""What one training step is.

`profile` is what a witness says of its memory, stretch by stretch; the results, of the whole model, are `flops`,
`memory` (phase by phase) and `fits` (whether one device is enough).
"""
