"""The ranges of single fields, as types that are checked when a config is read. Torch-free."""

from typing import Annotated

from msgspec import Meta

# Upper limits, far above any published transformer: they keep the bytes of one tensor within 64 bits.
MAX_WIDTH = 2**20  # hidden_size, intermediate_size, a projection's output
MAX_HEADS = 2**12
MAX_EXPERTS = 2**16
MAX_LAYERS = 100_000
MAX_VOCABULARY = 2**24
MAX_SEQUENCE_LENGTH = 2**24

Width = Annotated[int, Meta(ge=1, le=MAX_WIDTH)]
Heads = Annotated[int, Meta(ge=1, le=MAX_HEADS)]
Layers = Annotated[int, Meta(ge=1, le=MAX_LAYERS)]
Experts = Annotated[int, Meta(ge=1, le=MAX_EXPERTS)]
Vocabulary = Annotated[int, Meta(ge=1, le=MAX_VOCABULARY)]
SequenceLength = Annotated[int, Meta(ge=1, le=MAX_SEQUENCE_LENGTH)]
Epsilon = Annotated[float, Meta(gt=0, le=1)]
Positive = Annotated[float, Meta(gt=0, le=1e12)]
Share = Annotated[float, Meta(gt=0, le=1)]
Theta = Annotated[float, Meta(ge=2, le=1e12)]

InitializerRange = Annotated[float, Meta(ge=0, le=1e12)]
DEFAULT_INITIALIZER_RANGE = 0.02  # of every family's class in transformers 5
