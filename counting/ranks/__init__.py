"""A training step that is spread over ranks: what a witness says of one rank, and the results. Torch-free.

`shallow` chooses the layers that stand for all; `profile` holds what a witness returns for them; `memory` extends it to
the whole model; `result` is what the analysis contains.

All witnesses are extended by these same functions, so their agreement does not prove the extension:
`tests/counting/measurements/ranks/test_whole_models.py` holds it against models that are measured whole.
"""
