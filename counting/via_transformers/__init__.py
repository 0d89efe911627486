"""Families without modules here, as transformers builds them.

`config` and `fields` read, complete or refuse a config (`refusals` has shared words); `discover` builds the model and
says which layers are alike (`structure`: what its parts are), `run` runs one of each (`calls`, `attention`), `count`
counts (`ops`), and `measure` does all three. `elementwise_share` says what a refused model computes otherwise;
`quiet` keeps transformers silent.
"""
