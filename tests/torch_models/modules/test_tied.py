"""A tied model has one parameter for embedding and head, whoever loads its state dict."""

from collections.abc import Callable
from typing import cast

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel

from tests.shrunken import FAMILIES
from torch_models import build_training_model, initialize

TIED = FAMILIES["smollm"]


class Outer(nn.Module):
    """A module that has the model in it, as that of a trainer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def compiled(model: nn.Module) -> nn.Module:
    return cast(nn.Module, torch.compile(model, backend="eager"))


@pytest.mark.parametrize("around", [lambda model: model, Outer, compiled, DataParallel])
@pytest.mark.parametrize("assign", [False, True])
def test_a_state_dict_is_loaded_through_any_module(around: Callable[[nn.Module], nn.Module], assign: bool) -> None:
    stored = around(build_training_model(TIED, seed=1)).state_dict()
    model = build_training_model(TIED, device="meta" if assign else "cpu", seed=2)
    around(model).load_state_dict(stored, assign=assign)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    expected = build_training_model(TIED, seed=1)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in expected.parameters())
    token_ids = torch.arange(40).reshape(2, 20)
    assert torch.equal(model(token_ids, token_ids), expected(token_ids, token_ids))


def test_a_state_dict_with_one_of_the_names_is_enough() -> None:
    """As in Hugging Face's files, which leave the head out."""
    stored = build_training_model(TIED, seed=1).state_dict()
    for left_out in ("lm_head.weight", "model.embed_tokens.weight"):
        model = build_training_model(TIED, device="meta")
        model.load_state_dict({name: x for name, x in stored.items() if name != left_out}, assign=True)
        assert model.lm_head.weight is model.model.embed_tokens.weight
        assert torch.equal(model.lm_head.weight, stored["lm_head.weight"])
    with pytest.raises(RuntimeError, match=r"Missing key\(s\) in state_dict: .*embed_tokens"):
        model.load_state_dict({name: x for name, x in stored.items() if "norm" in name})


def test_modules_that_are_allocated_one_by_one_are_tied_again() -> None:
    model = build_training_model(TIED, device="meta")
    for module in model.modules():
        module.to_empty(device="cpu", recurse=False)
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    initialize(model, seed=1)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, build_training_model(TIED, seed=1).lm_head.weight)
