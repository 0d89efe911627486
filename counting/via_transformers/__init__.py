"""Families without modules in this project, built by transformers.

- `reading` reads a config, and finds the class that its decoder is built from;
- `discover` builds the model and finds equal layers; `structure` finds the component of each part;
- `run` runs one layer of each kind, with `attention`; `count` counts, with the formulas of `ops`;
- `checkpoint` compares stored tensors;
- `measure` does all of this for one model;
- `quiet` suppresses transformers' output.
"""
