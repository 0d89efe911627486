"""The text of a config's fields that a spec carries, from which a checkpoint's config.json is written."""

import json
import random
from typing import Any

import msgspec
import pytest
import torch

from tests.random_specs import random_layer, random_model
from tests.shrunken import FAMILIES, LLAMA
from torch_models import read_spec
from torch_models.fields.config import spec_from_fields
from torch_models.spec import ModelSpec


def written(fields: dict[str, Any], **options: Any) -> dict[str, Any]:
    text = read_spec(fields, **options).config_json
    assert text is not None
    decoded: dict[str, Any] = json.loads(text)
    return decoded


@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())
def test_a_spec_of_its_own_text_is_the_same(fields: dict[str, Any]) -> None:
    spec = spec_from_fields(fields, "x")
    again = spec_from_fields(written(fields), "x")
    assert again == msgspec.structs.replace(spec, defaulted_fields=(), passed_over_fields=again.passed_over_fields)
    assert msgspec.json.decode(msgspec.json.encode(spec), type=ModelSpec) == spec


def test_neither_order_nor_comments_make_another_spec() -> None:
    backwards = dict(reversed(LLAMA.items())) | {"_source": "here"}
    assert read_spec(backwards) == read_spec(LLAMA)
    assert hash(read_spec(backwards)) == hash(read_spec(LLAMA))
    assert read_spec(LLAMA | {"bos_token_id": 1}) != read_spec(LLAMA | {"bos_token_id": 2})


def test_a_spec_made_by_hand_has_none() -> None:
    pick = random.Random(0)
    assert random_model(pick, random_layer(pick), 0).config_json is None


def test_numbers_and_texts_are_as_given() -> None:
    fields = {
        "attention_dropout": 0.1,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "tokenizer_class": "\ud800é\u2028",
    }
    assert {field: written(LLAMA | fields)[field] for field in fields} == fields


def test_values_that_are_not_of_json() -> None:
    fields = {"torch_dtype": torch.bfloat16, "bad_words_ids": ((1, 2), (3,)), "id2label": {0: "a"}}
    given = written(LLAMA | fields)
    assert (given["torch_dtype"], given["bad_words_ids"]) == ("torch.bfloat16", [[1, 2], [3]])
    assert read_spec(LLAMA | {"bos_token_id": 10**5000}).config_json is None  # more digits than Python writes
    assert read_spec(LLAMA | {"bad_words_ids": ({1: 0, "a": 0},)}).config_json is None
