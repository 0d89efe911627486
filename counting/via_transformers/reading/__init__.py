"""A config of a family without modules here, read with transformers: checked and completed, or refused in one line.

- `config` and `fields` read, complete or refuse a config;
- `decoders` finds the class that a decoder is built from, and the text part of a model of several;
- `positions` refuses sequences that are longer than a table of positions;
- `parts` tells what a built model is made of, to compare with fields that say so.
"""
