"""The rotary fields of every published type: which angles they mean, and that they change no count."""

from typing import Any

import pytest
import torch

from counting.analysis import analyze
from counting.setup import Setup
from tests.shrunken import DEEPSEEK_V3, GEMMA2, GPT_OSS, LLAMA, MISTRAL
from torch_models import build
from torch_models.errors import ConfigError, UserError
from torch_models.fields.config import spec_from_fields
from torch_models.rope_scaling import (
    DynamicRopeScaling,
    LongRopeScaling,
    ProportionalRopeScaling,
    RopeScaling,
    UnknownRopeScaling,
    YarnRopeScaling,
)
from torch_models.spec import RotarySpec

FACTORS = {"short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 4, 4]}
LONG: dict[str, Any] = {"short_factor": (1.0,) * 4, "long_factor": (2.0, 2.0, 4.0, 4.0)}


def rotaries(fields: dict[str, Any], **more: Any) -> list[RotarySpec]:
    return [layer.attention.rotary for layer in spec_from_fields(fields | more, "x").layers]


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        ({"type": "dynamic", "factor": 2}, DynamicRopeScaling(factor=2.0, max_position_embeddings=64)),
        (
            {"rope_type": "dynamic", "factor": 2, "alpha": 1000.0},
            DynamicRopeScaling(factor=2.0, max_position_embeddings=64),
        ),
        (FACTORS | {"type": "longrope"}, LongRopeScaling(**LONG, original_max_position_embeddings=64, factor=1.0)),
        (
            FACTORS | {"type": "su", "original_max_position_embeddings": 16},
            LongRopeScaling(**LONG, original_max_position_embeddings=16, factor=4.0),
        ),
        (
            FACTORS | {"type": "su", "rope_type": "longrope", "original_max_position_embeddings": 16, "factor": 3},
            LongRopeScaling(**LONG, original_max_position_embeddings=16, factor=3.0),
        ),
        (
            {"type": "yarn", "original_max_position_embeddings": 16, "mscale": 0, "attention_factor": None},
            YarnRopeScaling(factor=4.0, original_max_position_embeddings=16),
        ),
        (
            {"rope_type": "proportional", "partial_rotary_factor": 0.25},
            ProportionalRopeScaling(partial_rotary_factor=0.25),
        ),
        ({"type": "mrope", "mrope_section": [1, 1, 2]}, None),
        ({"type": "mrope", "rope_type": "default", "mrope_section": [1, 1, 2]}, None),
        ({"factor": 2.0}, None),
        ({"type": "of_the_future", "factor": 2.0}, UnknownRopeScaling(name="of_the_future")),
    ],
    ids=str,
)
def test_every_type_in_a_native_family(scaling: dict[str, Any], expected: RopeScaling | None) -> None:
    for field in ("rope_scaling", "rope_parameters"):
        assert {rotary.scaling for rotary in rotaries(LLAMA, **{field: scaling})} == {expected}


def test_the_original_length_beside_the_scaling() -> None:
    fields = LLAMA | {"original_max_position_embeddings": 32, "rope_scaling": FACTORS | {"type": "longrope"}}
    spec = spec_from_fields(fields, "x")
    assert (spec.sequence_length, spec.sequence_length_source) == (32, "original_max_position_embeddings")
    expected = LongRopeScaling(**LONG, original_max_position_embeddings=32, factor=2.0)
    assert spec.layers[0].attention.rotary.scaling == expected


def test_an_entry_for_each_kind_of_layer() -> None:
    full, sliding = (
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_type": "linear", "rope_theta": 1e4, "factor": 8.0},
    )
    by_layer = {"full_attention": full, "sliding_attention": sliding}
    assert rotaries(LLAMA, rope_parameters=by_layer) == rotaries(LLAMA, rope_parameters=full)
    assert rotaries(MISTRAL, rope_parameters=by_layer) == rotaries(MISTRAL, rope_parameters=sliding)
    mixed = rotaries(GEMMA2, rope_parameters=by_layer)
    assert mixed[0::2] == rotaries(GEMMA2, rope_parameters=sliding)[0::2]
    assert mixed[1::2] == rotaries(GEMMA2, rope_parameters=full)[1::2]
    assert mixed[0] != mixed[1]
    yarn = {"sliding_attention": GPT_OSS["rope_scaling"], "full_attention": GPT_OSS["rope_scaling"]}
    assert rotaries(GPT_OSS, rope_scaling=None, rope_parameters=yarn) == rotaries(GPT_OSS)
    model = build(spec_from_fields(GEMMA2 | {"rope_parameters": by_layer}, "x"))
    assert len(model.model.rotary_specs) == 2
    assert model(torch.zeros(1, 4, dtype=torch.long)).isfinite().all()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            MISTRAL | {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}},
            r"^rope_parameters\.sliding_attention = null: must be an object: the model has such layers",
        ),
        (LLAMA | {"rope_parameters": {"full_attention": None}}, r"rope_parameters\.full_attention = null: must be an"),
        (
            LLAMA | {"rope_scaling": FACTORS | {"type": "longrope", "long_factor": [1, 2]}},
            r"rope_scaling\.long_factor = 2: must have 4 numbers, one for each pair of rotated channels",
        ),
        (
            {field: value for field, value in LLAMA.items() if field != "max_position_embeddings"}
            | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "^max_position_embeddings = null: is missing: dynamic scaling begins beyond it",
        ),
        (
            LLAMA | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            r"rope_parameters\.partial_rotary_factor = 0\.5: describes rotation of a part of each head, which is not",
        ),
        (
            LLAMA | {"partial_rotary_factor": 0.5},
            r"^partial_rotary_factor = 0\.5: describes rotation of a part of each",
        ),
    ],
    ids=["sliding", "none", "factors", "dynamic", "part", "part-outside"],
)
def test_rotary_fields_that_break_a_rule(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        spec_from_fields(fields, "x")


def test_keys_that_no_type_reads_are_listed() -> None:
    scaling = {"type": "yarn", "factor": 2, "finetuned": True, "_note": "ours"}
    spec = spec_from_fields(LLAMA | {"rope_scaling": scaling, "partial_rotary_factor": 1.0}, "x")
    assert "rope_scaling.finetuned = true (changes no count)" in spec.passed_over_fields
    assert not any("_note" in entry for entry in spec.passed_over_fields)


@pytest.mark.parametrize("fields", [LLAMA, DEEPSEEK_V3], ids=["llama", "deepseek_v3"])
@pytest.mark.parametrize(
    "scaling",
    [{"type": "dynamic", "factor": 2.0}, FACTORS | {"type": "longrope"}, {"type": "of_the_future"}],
    ids=["dynamic", "longrope", "unknown"],
)
def test_the_type_changes_no_count(fields: dict[str, Any], scaling: dict[str, Any]) -> None:
    setup = Setup(sequence_length=80)
    plain, scaled = analyze(fields, setup), analyze(fields | {"rope_scaling": scaling}, setup)
    assert scaled.memory == plain.memory
    assert (scaled.parameters, scaled.layers, scaled.agreement) == (plain.parameters, plain.layers, plain.agreement)


def test_a_type_that_is_not_known_is_measured_but_does_not_run() -> None:
    spec = spec_from_fields(LLAMA | {"rope_scaling": {"type": "ntk", "factor": 2.0}}, "x")
    ids = torch.zeros(1, 4, dtype=torch.long)
    assert build(spec, device="meta")(ids.to("meta")).shape == (1, 4, 96)
    with pytest.raises(UserError, match="rope_type 'ntk': its angles are not known, so the model does not run"):
        build(spec)(ids)


@pytest.mark.parametrize("types", [{"type": "yarnn"}, {"rope_type": "yarnn"}], ids=str)
def test_a_type_that_is_not_known_is_listed(types: dict[str, str]) -> None:
    (name,) = types
    for fields in (
        {"rope_scaling": {**types, "factor": 2.0}},
        {"rope_parameters": {"full_attention": {**types, "factor": 2.0}}},
    ):
        (field,) = fields
        path = f"{field}.full_attention" if field == "rope_parameters" else field
        said = f"{path}.{name} = 'yarnn' (is not known here: its angles change no count, and the model does not run)"
        assert said in spec_from_fields(LLAMA | fields, "x").passed_over_fields
    for known in ("default", "yarn", "mrope", "dynamic"):
        listed = spec_from_fields(LLAMA | {"rope_scaling": {"type": known, "factor": 2.0}}, "x").passed_over_fields
        assert not any("not known here" in entry for entry in listed)


OTHER_ANGLES: dict[str, Any] = {"rope_interleaved": True, "rope_ratio": 2.0, "rotary_base": 5, "no_rope_layers": [1, 0]}
SAME_ANGLES: dict[str, Any] = {"use_mrope": True, "rope_interleaved": False, "rope_ratio": 1.0, "rotary_base": 10000}


@pytest.mark.parametrize("field", OTHER_ANGLES)
def test_a_field_that_asks_for_other_angles_is_measured_but_does_not_run(field: str) -> None:
    fields = {name: value for name, value in LLAMA.items() if name != "rope_theta"}
    turned = fields | {field: OTHER_ANGLES[field]}
    setup, ids = Setup(sequence_length=16), torch.zeros(1, 4, dtype=torch.long)
    plain, other = analyze(fields, setup), analyze(turned, setup)
    assert (other.parameters, other.layers, other.memory) == (plain.parameters, plain.layers, plain.memory)
    assert f"{field} = " in str(other.passed_over_fields)
    with pytest.raises(UserError, match=f"'{field}': its angles are not known, so the model does not run"):
        build(spec_from_fields(turned, "x"))(ids)


@pytest.mark.parametrize("field", SAME_ANGLES)
def test_a_field_that_asks_for_the_same_angles_runs(field: str) -> None:
    fields = {name: value for name, value in LLAMA.items() if name != "rope_theta"}
    spec = spec_from_fields(fields | {field: SAME_ANGLES[field]}, "x")
    assert build(spec)(torch.zeros(1, 4, dtype=torch.long)).isfinite().all()
