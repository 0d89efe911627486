"""Layers that carry a state along the sequence: their scans are replaced while a model is measured, and noted.

- `stand_ins` has the functions of transformers that are replaced, and what they say of a scan;
- `layers` has the scans of each distinct layer, and refuses layers whose state is carried in a way that is not known;
- `elementwise` counts what these functions do besides matrix products, by running them over short sequences.
"""
