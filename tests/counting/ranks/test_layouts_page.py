"""What the page on layouts says of each family: the largest tp and ep of a config of it, whether it has cp and pp."""

import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import torch_models.families as families_package
from counting.layout import resolve_layout
from counting.setup import Setup, resolve
from torch_models import ArgumentError, read_spec
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout
from torch_models.spec import ModelSpec

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "layouts.md").read_text(encoding="utf-8")
FAMILY_ROWS = re.findall(r"^\| (\w+) \| (\w+) \| (\d+) \| (\d+) \| ([\w ]+) \| ([\w ]+) \|$", PAGE, flags=re.MULTILINE)


# Of transformers' class, where `configs/` has no file of the family.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma4_unified_text": {
        "vocab_size": 262_144,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 30,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
    }
}


def spec_on_page(family: str, config: str) -> ModelSpec:
    if config == "defaults":
        return spec_from_fields({"model_type": family, **DEFAULTS[family]}, family)
    return read_spec(config)


def resolved(layout: Layout, spec: ModelSpec) -> Layout:
    """For two micro-batches of 4,096 tokens, or as many as the model has positions for."""
    length = min(2**12, spec.learned_positions or 2**12)
    return resolve_layout(layout, spec, resolve(Setup(sequence_length=length, micro_batches=2), spec))


def allowed(spec: ModelSpec, field: str, value: int) -> bool:
    try:
        resolved(Layout(fsdp=value, ep=value) if field == "ep" else Layout(tp=value), spec)
    except ArgumentError:
        return False
    return True


@pytest.mark.parametrize(("family", "config", "tp", "ep", "cp", "pp"), FAMILY_ROWS)
def test_the_axes_of_each_family(family: str, config: str, tp: str, ep: str, cp: str, pp: str) -> None:
    spec = spec_on_page(family, config)
    assert spec.model_type == family
    assert max(value for value in range(1, 513) if allowed(spec, "tp", value)) == int(tp)
    assert max(value for value in range(1, 513) if allowed(spec, "ep", value)) == int(ep)
    for said, layout in ((cp, Layout(cp=2)), (pp, Layout(pp=2))):
        if said == "yes":
            assert resolved(layout, spec).ranks == 2
        else:
            with pytest.raises(ArgumentError) as caught:
                resolved(layout, spec)
            assert said in caught.value.rule.replace("whose head", "its head")


def test_every_family_is_on_the_page() -> None:
    families = {name for _, name, _ in pkgutil.iter_modules(families_package.__path__)}
    assert {family for family, *_ in FAMILY_ROWS} == families
    assert len(families) > 10
