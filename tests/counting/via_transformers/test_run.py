"""The ways in which a model is run, what a run shows, and that it leaves the model as it was."""

import re
from collections import Counter

import pytest
from torch import nn

from counting.setup import MicroBatch, Setup
from counting.via_transformers import run as running
from counting.via_transformers.attention import ONE_KERNEL, attention_in_one_kernel, attention_known_as
from counting.via_transformers.discover import Discovered, discover
from counting.via_transformers.measure import measure_via_transformers
from counting.via_transformers.reading.config import ForeignModel, read_foreign
from counting.via_transformers.reading.decoders import Decoder
from counting.via_transformers.run import LONGEST_REASON, WAYS, Recorded, Way, run, run_first_way
from tests.foreign_families import FAMILIES
from torch_models.errors import UserError
from torch_models.fields.config import ForeignConfig

LENGTH = 32

# Without a mask transformers looks at numbers to make one, which the meta device has not; but not for our kernel.
WAYS_THAT_RUN = [way for way in WAYS if way.masked or way.attention == ONE_KERNEL]


def model_of(model_type: str) -> ForeignModel:
    fields = {"model_type": model_type, **FAMILIES[model_type][0]}
    return read_foreign(ForeignConfig(name="small", source="small", model_type=model_type, fields=fields))


def decoder_of(model_type: str) -> Decoder:
    return model_of(model_type).decoder


def found_and_run(model_type: str, way: Way) -> tuple[Discovered, Recorded]:
    with attention_known_as(ONE_KERNEL, attention_in_one_kernel):
        found = discover(decoder_of(model_type), way.attention)
        return found, run(found, way, MicroBatch(1, LENGTH))


# --- Ways that fail --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("no {way}\n   here", f"transformers' code fails on a sequence of {LENGTH} tokens: no {WAYS[0]} here"),
        (
            "Cannot copy out of meta tensor; no data!",
            "its code reads the numbers in a tensor, and the meta device, on ",
        ),
        ("x" * 2 * LONGEST_REASON, f"tokens: {'x' * (LONGEST_REASON - 1)}…"),
    ],
)
def test_the_reason_of_the_first_way_is_said(message: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(found: Discovered, way: Way, batch: MicroBatch) -> Recorded:
        raise RuntimeError(message.format(way=way))

    monkeypatch.setattr(running, "run", fails)
    with pytest.raises(UserError) as caught:
        measure_via_transformers(model_of("gpt_bigcode"), Setup(sequence_length=LENGTH), step=False)
    assert str(caught.value).startswith("small: model_type gpt_bigcode cannot be measured: ")
    assert said in str(caught.value)


def test_what_transformers_cannot_build_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(decoder: Decoder, attention: str) -> Discovered:
        raise KeyError  # without a word

    monkeypatch.setattr(running, "discover", fails)
    with pytest.raises(UserError, match=r"^transformers cannot build it: KeyError$"):
        run_first_way(decoder_of("gpt_bigcode"), MicroBatch(1, LENGTH))


def test_what_makes_a_model_uncountable_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuses(decoder: Decoder, attention: str) -> Discovered:
        tried.append(attention)
        raise UserError("it has two heads")

    monkeypatch.setattr(running, "discover", refuses)
    with pytest.raises(UserError, match=r"^it has two heads$"):
        run_first_way(decoder_of("gpt_bigcode"), MicroBatch(1, LENGTH))
    assert tried == [ONE_KERNEL]


def test_the_first_way_that_works_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[Way] = []

    def fails_at_first(found: Discovered, way: Way, batch: MicroBatch) -> Recorded:
        ways.append(way)
        if len(ways) < 4:
            raise RuntimeError("not so")
        return run(found, way, batch)

    monkeypatch.setattr(running, "run", fails_at_first)
    with attention_known_as(ONE_KERNEL, attention_in_one_kernel):
        found, recorded = run_first_way(decoder_of("gpt_bigcode"), MicroBatch(1, LENGTH))
    assert tuple(ways) == WAYS[:4]
    assert ways[-1] == Way("sdpa", masked=True)
    assert found.model.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    assert recorded.in_one_kernel == frozenset()


# --- What discovering and running give -------------------------------------------------------------------------


@pytest.mark.parametrize("model_type", FAMILIES)
def test_layers_that_are_alike_are_found(model_type: str) -> None:
    decoder = decoder_of(model_type)
    config = decoder.config
    before = config.to_dict()
    found = discover(decoder, "eager")
    assert config.to_dict() == before
    assert sum(group.number for group in found.groups) == len(found.layers) == config.num_hidden_layers
    assert [group.number for group in found.groups] == list(FAMILIES[model_type][1].values())
    assert {group.first: group.number for group in found.groups} == Counter(found.first_alike)
    assert [group.layer for group in found.groups] == [found.layers[group.first] for group in found.groups]


@pytest.mark.parametrize("way", WAYS_THAT_RUN, ids=str)
def test_one_layer_of_each_kind_runs_and_the_model_is_left_as_it_was(way: Way) -> None:
    found, recorded = found_and_run("cohere2", way)
    assert list(recorded.layers) == [0, 3]
    assert all(call.part is found.layers[index] for index, call in recorded.layers.items())
    assert "lm_head" in recorded.outside
    assert list(found.model.get_submodule(found.layers_name).children()) == list(found.layers)
    for module in found.model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module.training
        assert not hasattr(module, "component")
    ran = {module for module, flops in recorded.flops.items() if flops}
    not_run = {module for index in (1, 2) for module in found.layers[index].modules()}
    assert ran
    assert not ran & not_run


def test_only_attention_without_a_mask_is_one_kernel() -> None:
    for way in WAYS_THAT_RUN:
        found, recorded = found_and_run("granite", way)
        alone = way == Way(ONE_KERNEL, masked=False)
        assert len(recorded.in_one_kernel) == int(alone)
        assert recorded.in_one_kernel <= set(found.layers[0].modules())


def test_hooks_and_layers_are_restored_when_a_pass_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found = discover(decoder_of("gpt_bigcode"), "eager")

    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("within")

    monkeypatch.setattr(found.layers[0], "forward", fails)
    with pytest.raises(RuntimeError, match="within"):
        run(found, Way("eager", masked=True), MicroBatch(1, LENGTH))
    stack = found.model.get_submodule(found.layers_name)
    assert isinstance(stack, nn.ModuleList)
    assert list(stack) == list(found.layers)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in found.model.modules())


def test_ways_are_named_in_words() -> None:
    assert all(re.fullmatch(r"(attention as one fused kernel|\w+ attention)( with a mask)?", str(way)) for way in WAYS)
    assert len({str(way) for way in WAYS}) == len(WAYS) == 6
