"""The loss of a training step: transformers' number, and the same gradients however much is computed again."""

from typing import Any

import pytest
import torch
from torch import Tensor

from counting.measurements.meta_device import measuring
from tests.shrunken import DEEPSEEK_V3, FAMILIES, LLAMA
from torch_models import UserError, build, build_mtp
from torch_models.fields.config import spec_from_fields
from torch_models.modules.recompute import set_recompute
from torch_models.spec import Kernels, Recompute
from torch_models.training.loss import IGNORED, training_loss

RECOMPUTES: list[Recompute] = ["none", "selective", "full"]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    token_ids, labels = torch.randint(96, (2, 2, 24), generator=generator)
    labels[0, 3] = IGNORED
    return token_ids, labels


def gradients(
    fields: dict[str, Any], kernels: Kernels, recompute: Recompute, loss_chunk: int | None
) -> tuple[Tensor, list[Tensor | None]]:
    torch.manual_seed(0)
    spec = spec_from_fields(fields, "shrunken")
    model, mtp_layers = build(spec, kernels=kernels), build_mtp(spec, kernels=kernels)
    for part in (model, mtp_layers):
        set_recompute(part, recompute)
    loss = training_loss(model, mtp_layers, *batch(), loss_chunk=loss_chunk)
    loss.backward()
    return loss.detach(), [parameter.grad for part in (model, mtp_layers) for parameter in part.parameters()]


def test_loss_is_that_of_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    reference = LlamaForCausalLM(LlamaConfig(**LLAMA))
    model = build(spec_from_fields(LLAMA, "shrunken"))
    model.load_state_dict(reference.state_dict())
    token_ids, labels = batch()
    # transformers shifts the labels itself: the last of these is for no position.
    shifted = torch.cat((torch.full((2, 1), IGNORED), labels), dim=1)
    expected = reference(torch.cat((token_ids, labels[:, -1:]), dim=1), labels=shifted).loss
    torch.testing.assert_close(training_loss(model, torch.nn.ModuleList(), token_ids, labels), expected)


@pytest.mark.parametrize("recompute", RECOMPUTES)
@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())
def test_gradients_do_not_depend_on_what_is_computed_again(fields: dict[str, Any], recompute: Recompute) -> None:
    loss, expected = gradients(fields, "eager", "none", None)
    again, found = gradients(fields, "fused", recompute, 7)
    torch.testing.assert_close(again, loss)
    assert all(gradient is not None for gradient in expected)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_every_prediction_module_is_in_the_loss() -> None:
    """Two modules weigh half each: with the head's logits all zero, each loss is log V, and the total log V x 1.3."""
    spec = spec_from_fields(DEEPSEEK_V3 | {"num_nextn_predict_layers": 2}, "shrunken")
    model, mtp_layers = build(spec), build_mtp(spec)
    torch.nn.init.zeros_(model.lm_head.weight)
    loss = training_loss(model, mtp_layers, *batch())
    torch.testing.assert_close(loss, torch.tensor(96.0).log() * 1.3)


@pytest.mark.parametrize("recompute", RECOMPUTES)
def test_a_step_runs_on_the_meta_device(recompute: Recompute) -> None:
    spec = spec_from_fields(DEEPSEEK_V3, "shrunken")
    model, mtp_layers = (make(spec, device="meta", dtype=torch.bfloat16) for make in (build, build_mtp))
    for part in (model, mtp_layers):
        set_recompute(part, recompute)
    token_ids = torch.empty(1, 24, dtype=torch.long, device="meta")
    with measuring():
        training_loss(model, mtp_layers, token_ids, token_ids, loss_chunk=7).backward()
    assert all(parameter.grad is not None for part in (model, mtp_layers) for parameter in part.parameters())


def test_an_unknown_recompute_is_refused() -> None:
    with pytest.raises(UserError, match="recompute = 'some': must be one of none, selective, full"):
        set_recompute(build(spec_from_fields(LLAMA, "shrunken"), device="meta"), "some")  # type: ignore[arg-type]
