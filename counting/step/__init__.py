"""One training step: its memory as witnesses return it, and the results.

`profile` holds the memory of one step as a witness returns it, stretch by stretch. The results for the whole model are
`flops`, `memory` (phase by phase) and `fit` (whether one device is enough).
"""
