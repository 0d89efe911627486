"""The shallow model: every layer of the deep one has an equal between equal neighbours, and it stays shallow."""

import random

import msgspec
import pytest

from counting.ranks.shallow import Shallow, shallow
from tests.counting.ranks.letters import LAYERS, model
from torch_models.fields.config import read_spec
from torch_models.spec import LayerSpec


def letters(found: Shallow) -> str:
    names = {layer: letter for letter, layer in LAYERS.items()}
    return "".join(names[layer] for layer in found.spec.layers)


def neighbourhoods(layers: tuple[LayerSpec, ...]) -> list[tuple[LayerSpec | None, LayerSpec, LayerSpec | None]]:
    return list(zip((None, *layers), layers, (*layers[1:], None), strict=False))


@pytest.mark.parametrize(
    ("deep", "expected"),
    [
        ("A", "A"),
        ("AA", "AA"),
        ("AAAAAAAA", "AAA"),
        ("AAABBBBBB", "AAABBB"),
        ("ABABABAB", "ABAB"),
        ("ABABABABA", "ABABA"),
        ("ABBBBBA", "ABBBA"),
    ],
)
def test_few_layers_stand_for_many(deep: str, expected: str) -> None:
    assert letters(shallow(model(deep))) == expected


@pytest.mark.parametrize("seed", range(50))
def test_every_layer_has_an_equal_between_equal_neighbours(seed: int) -> None:
    generator = random.Random(seed)
    deep = "".join(generator.choice("AAB" if seed % 2 else "ABC") * generator.randint(1, 6) for _ in range(12))
    found = shallow(model(deep))
    stand_ins = neighbourhoods(found.spec.layers)
    places = [stand_ins[index] for index, count in found.runs for _ in range(count)]
    assert places == neighbourhoods(model(deep).layers)
    assert sum(found.counts()) == len(deep)
    assert min(found.counts()) >= 0
    assert len(found.spec.layers) <= len(deep)


@pytest.mark.parametrize(("name", "layers"), [("llama_3_8b", 3), ("deepseek_v3", 6), ("gemma_2_9b", 4)])
def test_a_published_model_has_few(name: str, layers: int) -> None:
    spec = read_spec(name)
    assert shallow(spec).spec.num_layers == layers
    assert sum(shallow(spec).counts()) == spec.num_layers


def test_the_rest_of_the_model_stays_as_it_is() -> None:
    spec = read_spec("deepseek_v3")
    assert msgspec.structs.replace(shallow(spec).spec, layer_runs=spec.layer_runs) == spec
