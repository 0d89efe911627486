"""Models whose layers are letters: "AAB" has two equal layers and a third."""

import msgspec

from tests.shrunken import LLAMA
from torch_models.fields.config import spec_from_fields
from torch_models.spec import ModelSpec, runs_of

BASE = spec_from_fields(LLAMA, "small")
FIRST = BASE.layers[0]
LAYERS = {
    letter: msgspec.structs.replace(
        FIRST, feed_forward=msgspec.structs.replace(FIRST.feed_forward, intermediate_size=32 * size)
    )
    for size, letter in enumerate("ABC", start=1)
}


def model(letters: str) -> ModelSpec:
    return msgspec.structs.replace(BASE, layer_runs=runs_of(LAYERS[letter] for letter in letters))
