"""What a step is run with: what is refused, and what is filled in from the model."""

from typing import Any

import msgspec
import pytest

from counting.layout import can_reserve, check_reserved
from counting.setup import MOST_CHUNKS, Setup, resolve
from tests.shrunken import DEEPSEEK_V3, LLAMA, MINIMAX_M2
from torch_models import ArgumentError, ConfigError
from torch_models.fields.config import spec_from_fields
from torch_models.layout import Layout

LLAMA_SPEC = spec_from_fields(LLAMA, "small")
DEEPSEEK_SPEC = spec_from_fields(DEEPSEEK_V3, "small")


@pytest.mark.parametrize("field", ["sequence_length", "loss_chunk"])
@pytest.mark.parametrize("value", [0, -1, 2**24 + 1, True, 1.5, "16"])
def test_tokens_that_cannot_be(field: str, value: Any) -> None:
    with pytest.raises(ArgumentError, match=rf"^{field} = .*: must be a whole number of tokens from 1 to 16777216$"):
        Setup(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("kernels", "flash", "must be one of fused, eager"),
        ("recompute", "some", "must be one of none, selective, per_op, full, or a whole number N"),
        (
            "recompute",
            1,
            "must be one of none, selective, per_op, full, or a whole number N, at least 2, for every N-th",
        ),
        ("recompute", True, "must be one of none, selective, per_op, full, or a whole number N, at least 2"),
        ("recompute", 2.0, "must be one of none, selective, per_op, full, or a whole number N, at least 2"),
        ("precision", "int4", "is not known: choose from mixed, "),
        ("precision", 16, "is not known: choose from mixed, "),
        ("optimizer", "adam", "is not known: choose from adamw, "),
        ("mtp", 1, "must be true, false or none"),
        ("mtp", "on", "must be true, false or none"),
        ("micro_batch_size", 0, "must be a whole number of sequences from 1 to 16777216"),
        ("micro_batch_size", None, "must be a whole number of sequences from 1 to 16777216"),
        ("micro_batch_size", True, "must be a whole number of sequences from 1 to 16777216"),
        ("micro_batches", 0, "must be a whole number of micro-batches from 1 to 1000000000"),
        ("micro_batches", 1.0, "must be a whole number of micro-batches from 1 to 1000000000"),
        ("global_batch_tokens", 0, "must be a whole number of tokens from 1 to 1000000000000"),
        ("execution", "traced", "must be one of eager, compiled"),
        ("clip_gradients", 1, "must be true or false"),
        ("clip_gradients", "on", "must be true or false"),
        ("clip_gradients", None, "must be true or false"),
        ("zero_gradients", "always", "must be one of none, in_place"),
        ("zero_gradients", None, "must be one of none, in_place"),
        ("measured_dtype", 5, "is filled in with the result: leave it out"),
        ("sequence_length_source", 7, "is filled in with the result: leave it out"),
    ],
)
def test_what_cannot_be(field: str, value: Any, rule: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        Setup(**{field: value})
    assert (caught.value.field, caught.value.value) == (field, value)
    assert caught.value.rule.startswith(rule)


def test_an_interval_without_a_layer() -> None:
    layers = LLAMA_SPEC.num_layers
    assert resolve(Setup(sequence_length=8, recompute=layers), LLAMA_SPEC).recompute == layers
    with pytest.raises(ArgumentError, match=f"recompute = {layers + 1}: leaves no layer to be recomputed: small has"):
        resolve(Setup(sequence_length=8, recompute=layers + 1), LLAMA_SPEC)


def test_recipes_by_name_whatever_the_case() -> None:
    setup = Setup(precision=" BF16", optimizer="SGD")
    assert (setup.precision, setup.optimizer) == ("bf16", "sgd")
    assert (setup.precision_recipe.weight_bytes, setup.optimizer_recipe.moments) == (2, "none")


def test_what_is_left_open_comes_from_the_model() -> None:
    setup = resolve(Setup(), DEEPSEEK_SPEC)
    assert (setup.sequence_length, setup.sequence_length_source, setup.mtp) == (64, "max_position_embeddings", True)
    assert resolve(Setup(), LLAMA_SPEC).mtp is False
    assert resolve(Setup(mtp=False), DEEPSEEK_SPEC).mtp is False
    given = resolve(Setup(sequence_length=10), DEEPSEEK_SPEC)
    assert (given.sequence_length, given.sequence_length_source, given.tokens) == (10, "given", 10)


def test_resolving_twice_changes_nothing_more_but_the_source() -> None:
    once = resolve(Setup(sequence_length=10, loss_chunk=4), DEEPSEEK_SPEC)
    assert resolve(once, DEEPSEEK_SPEC) == once
    assert msgspec.json.decode(msgspec.json.encode(once), type=Setup) == once


def test_micro_batches_and_the_global_batch_follow_from_each_other() -> None:
    def batch(**fields: Any) -> tuple[int | None, int | None]:
        setup = resolve(Setup(sequence_length=10, micro_batch_size=3, **fields), LLAMA_SPEC)
        assert setup.tokens == 30
        assert resolve(setup, LLAMA_SPEC) == setup
        return setup.micro_batches, setup.global_batch_tokens

    assert batch() == (1, 30)
    assert batch(micro_batches=4) == batch(global_batch_tokens=120) == (4, 120)
    assert batch(micro_batches=4, global_batch_tokens=120) == (4, 120)
    one = resolve(Setup(sequence_length=10), LLAMA_SPEC)  # a step of one sequence is nobody's choice
    assert (one.micro_batches, one.global_batch_tokens, one.step_tokens) == (1, None, 10)
    assert resolve(Setup(sequence_length=10, global_batch_tokens=10), LLAMA_SPEC).global_batch_tokens == 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"global_batch_tokens": 100},
            "global_batch_tokens = 100: must be a multiple of one micro-batch, 3 x 10 tokens",
        ),
        ({"global_batch_tokens": 100}, "of small: give 90 or 120"),
        ({"global_batch_tokens": 29}, "of small: give 30"),
        (
            {"micro_batches": 10**9, "sequence_length": 10**4},
            "micro_batches = 1000000000: makes 30000000000000 tokens a",
        ),
        ({"global_batch_tokens": 60, "micro_batches": 3}, "global_batch_tokens = 60: is not 3 micro-batches of 3 x 10"),
        ({"micro_batch_size": 2_000_000}, "micro_batch_size = 2000000: makes 20000000 tokens with sequences of 10"),
        ({"micro_batch_size": 100, "loss_chunk": 3}, "loss_chunk = 3: makes 334 chunks of 1000 tokens"),
    ],
)
def test_batches_that_cannot_be(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        resolve(Setup(**{"sequence_length": 10, "micro_batch_size": 3} | fields), LLAMA_SPEC)
    assert message in str(caught.value)


def test_a_chunk_of_the_loss_as_long_as_the_micro_batch_is_none() -> None:
    def chunk(loss_chunk: int) -> int | None:
        return resolve(Setup(sequence_length=10, micro_batch_size=3, loss_chunk=loss_chunk), LLAMA_SPEC).loss_chunk

    assert (chunk(29), chunk(30), chunk(31)) == (29, None, None)


def test_no_sequence_length_anywhere() -> None:
    spec = msgspec.structs.replace(LLAMA_SPEC, sequence_length=None, sequence_length_source=None)
    with pytest.raises(ConfigError, match=r"^small: max_position_embeddings = null: is missing, .*sequence_length$"):
        resolve(Setup(), spec)


def test_multi_token_prediction_that_there_is_not() -> None:
    with pytest.raises(ArgumentError, match=r"^mtp = true: small has no multi-token prediction"):
        resolve(Setup(mtp=True), LLAMA_SPEC)
    modules = "num_mtp_modules = 3: neither the published weights nor transformers have these modules"
    with pytest.raises(ArgumentError, match=rf"^mtp = true: x has no multi-token prediction \({modules}\): leave"):
        resolve(Setup(mtp=True, sequence_length=8), spec_from_fields(MINIMAX_M2 | {"num_mtp_modules": 3}, "x"))


@pytest.mark.parametrize(("length", "fewest"), [(1024, 4), (1025, 5), (16_777_216, 65_536)])
def test_as_many_chunks_as_there_may_be(length: int, fewest: int) -> None:
    assert resolve(Setup(sequence_length=length, loss_chunk=fewest), LLAMA_SPEC).loss_chunk == fewest
    assert -(-length // fewest) <= MOST_CHUNKS
    with pytest.raises(ArgumentError, match=f"^loss_chunk = {fewest - 1}: makes .* give at least {fewest}$"):
        resolve(Setup(sequence_length=length, loss_chunk=fewest - 1), LLAMA_SPEC)


@pytest.mark.parametrize(
    ("layout", "recompute", "message"),
    [
        (None, "selective", "recompute = 'selective': is of kernels that run op by op"),
        (Layout(tp=2), "none", "execution = 'compiled': what is reserved is modelled of whole layers"),
        (Layout(tp=2), "selective", "recompute = 'selective': is of kernels that run op by op"),
        (Layout(fsdp=2), "none", None),
        (None, "full", None),
    ],
)
def test_what_compiled_layers_reserve(layout: Layout | None, recompute: Any, message: str | None) -> None:
    setup = Setup(execution="compiled", recompute=recompute)
    assert can_reserve(layout, setup) == (message is None)
    if message is not None:
        with pytest.raises(ArgumentError, match=message):
            check_reserved(layout, setup)
    check_reserved(layout, Setup(recompute=recompute))
