"""Published models that guide a design."""

from functools import cache
from typing import TypeVar

import msgspec

from torch_models.fields.bundled import bundled_data

_Row = TypeVar("_Row")


class PublishedModel(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The size, width and depth of a published dense model, as its source prints them."""

    name: str
    parameters: int
    hidden_size: int
    layers: int
    source: str

    @property
    def width_to_depth(self) -> float:
        """Hidden size / layers."""
        return self.hidden_size / self.layers


def published_rows(file: str, row: type[_Row]) -> list[_Row]:
    """The rows of the table `file` of `configs/`."""
    return msgspec.json.decode((bundled_data() / file).read_bytes(), type=list[row])  # type: ignore[valid-type]


@cache
def published_models() -> tuple[PublishedModel, ...]:
    """The table `configs/published_models.json`, by size; the file is read on the first call."""
    return tuple(sorted(published_rows("published_models.json", PublishedModel), key=lambda model: model.parameters))


def published_peers(parameters: int) -> tuple[PublishedModel, ...]:
    """The published models within a factor of 3 of `parameters`, which is first limited to the range of the table."""
    models = published_models()
    size = min(max(parameters, models[0].parameters), models[-1].parameters)
    return tuple(model for model in models if size / 3 <= model.parameters <= size * 3)
