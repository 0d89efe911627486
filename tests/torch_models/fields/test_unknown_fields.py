"""Fields that no family declares: passed over and listed, refused, or ignored on the caller's word."""

from typing import Any

import msgspec
import pytest

from tests.shrunken import DEEPSEEK_V3, LLAMA
from torch_models.fields.config import spec_from_fields
from torch_models.fields.known_fields import FIXED_FIELDS, IRRELEVANT_FIELDS
from torch_models.spec import ModelSpec


def model(spec: ModelSpec) -> ModelSpec:
    """The spec without the lists of fields."""
    return msgspec.structs.replace(spec, passed_over_fields=(), ignored_fields=())


@pytest.mark.parametrize("fields", [LLAMA, DEEPSEEK_V3], ids=["llama", "deepseek_v3"])
def test_fields_without_influence_have_none_and_are_listed(fields: dict[str, Any]) -> None:
    assert all(reason for reason in IRRELEVANT_FIELDS.values())
    noise = dict.fromkeys(IRRELEVANT_FIELDS, "anything") | FIXED_FIELDS | {"of_the_future": None}
    del noise["architectures"]
    spec = spec_from_fields(fields | noise, "x")
    assert model(spec) == model(spec_from_fields(fields, "x"))
    listed = {entry.partition(" = ")[0] for entry in spec.passed_over_fields}
    assert listed == {"architectures", *(field for field in noise if not field.startswith("_"))}
