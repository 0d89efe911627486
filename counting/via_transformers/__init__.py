"""Families without modules in this project, built by transformers.

- `config` and `fields` read, complete or refuse a config; `refusals` has shared message texts;
- `discover` builds the model and finds equal layers; `structure` finds the component of each part;
- `run` runs one layer of each kind, with `calls` and `attention`; `count` counts, with the formulas of `ops`;
- `measure` does all of this for one model;
- `elementwise_share` measures the elementwise share of a refused model, for the message;
- `quiet` suppresses transformers' output.
"""
