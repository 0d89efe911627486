"""A training step that is spread over ranks: what a witness says of one rank, and the results. Torch-free.

`shallow` chooses the layers that stand for all; `profile` holds what a witness returns for them; `memory` extends it to
the whole model; `result` is what the analysis contains.
"""
