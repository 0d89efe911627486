"""Families without modules in this project, built by transformers.

- `config` and `fields` read, complete or refuse a config;
- `decoders` finds the class that a decoder is built from, and the text part of a model of several;
- `discover` builds the model and finds equal layers; `structure` finds the component of each part;
- `positions` refuses sequences that are longer than a table of positions;
- `run` runs one layer of each kind, with `attention`; `count` counts, with the formulas of `ops`;
- `parts` tells what a built model is made of, to compare with fields that say so; `checkpoint` compares stored tensors;
- `measure` does all of this for one model;
- `quiet` suppresses transformers' output.
"""
