"""The check of a batch before training."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.shrunken import LLAMA
from torch_models import UserError, build, build_training_model, check_batch
from torch_models.fields.config import spec_from_fields

SPEC = spec_from_fields(LLAMA, "shrunken")
LAST = 95  # the last token of the vocabulary


def changed(value: int) -> Tensor:
    values = torch.arange(16).reshape(2, 8)
    values[1, 2] = value
    return values


def test_a_batch_that_can_be_trained_on() -> None:
    for model in (SPEC, build(SPEC, device="meta")):
        check_batch(model, changed(LAST), changed(-100))
        check_batch(model, changed(LAST).int(), changed(LAST))


@pytest.mark.parametrize(
    ("token_ids", "labels", "said"),
    [
        (LAST + 1, 0, r"token_ids\[1, 2\] = 96: must be from 0 to 95$"),
        (-1, 0, r"token_ids\[1, 2\] = -1: must be from 0 to 95$"),
        (-100, 0, r"token_ids\[1, 2\] = -100: must be from 0 to 95$"),
        (0, LAST + 1, r"labels\[1, 2\] = 96: must be from 0 to 95, or -100 where a position is not scored$"),
        (0, -1, r"labels\[1, 2\] = -1: must be from 0 to 95, or -100"),
    ],
)
def test_a_value_outside_the_vocabulary_is_named(token_ids: int, labels: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        check_batch(SPEC, changed(token_ids), changed(labels))


def test_shapes_and_dtypes_are_checked() -> None:
    with pytest.raises(UserError, match=r"labels = \(2, 7\): must have the shape of token_ids, \(2, 8\)"):
        check_batch(SPEC, changed(0), changed(0)[:, 1:])
    with pytest.raises(UserError, match=r"labels = .torch\.int32.: must be torch\.int64"):
        check_batch(SPEC, changed(0), changed(0).int())


@pytest.mark.parametrize("other", [None, [[1, 2]], 3])
def test_what_is_no_tensor_is_named(other: Any) -> None:
    with pytest.raises(UserError, match=f"labels = '{type(other).__name__}': must be a tensor"):
        check_batch(SPEC, changed(0), other)
    with pytest.raises(UserError, match=f"token_ids = '{type(other).__name__}': must be a tensor"):
        check_batch(SPEC, other, changed(0))


def test_a_model_may_be_wrapped() -> None:
    model = torch.compile(build(SPEC, device="meta"), backend="eager")
    with pytest.raises(UserError, match=r"labels\[1, 2\] = 96"):
        check_batch(model, changed(0), changed(LAST + 1))
    with pytest.raises(UserError, match="model = 'Linear': must be a model of torch_models or a ModelSpec"):
        check_batch(torch.nn.Linear(2, 2), changed(0), changed(0))


@pytest.mark.parametrize(
    ("labels", "said"),
    [(changed(0).int(), "labels = torch.int32: must be torch.int64"), (changed(0)[:, 1:], r"labels = \(2, 7\): must")],
    ids=["dtype", "shape"],
)
def test_one_graph_is_not_made_of_a_wrong_batch(labels: Tensor, said: str) -> None:
    """Torch's compiler has an error of its own, with what is wrong in it."""
    torch._dynamo.reset()
    model = torch.compile(build_training_model(SPEC, device="meta"), backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=said):
        model(changed(0), labels)
