"""The loss of a training step: transformers' number, the papers' equations, and what it is divided by."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from counting.measurements.meta_device import measuring
from tests.shrunken import DEEPSEEK_V3, FAMILIES, GLM4_MOE, LLAMA
from torch_models import UserError, build_training_model, loss_normalizer, set_recompute
from torch_models.fields.config import spec_from_fields
from torch_models.spec import Kernels, Recompute
from torch_models.training.batch import IGNORED
from torch_models.training.model import TrainingModel

RECOMPUTES: list[Recompute] = ["none", "selective", "per_op", "full"]
TWO_PREDICTIONS = DEEPSEEK_V3 | {"num_nextn_predict_layers": 2}


def made(fields: dict[str, Any], **how: Any) -> TrainingModel:
    torch.manual_seed(0)
    return build_training_model(spec_from_fields(fields, "shrunken"), **how)


def batch(length: int = 24) -> tuple[Tensor, Tensor]:
    """Two sequences and the next token of each position, of which the first eight are a prompt that is not scored."""
    tokens = torch.randint(96, (2, length + 1), generator=torch.Generator().manual_seed(0))
    labels = tokens[:, 1:].clone()
    labels[0, :8] = IGNORED
    return tokens[:, :-1], labels


def gradients(model: TrainingModel) -> list[Tensor]:
    found = [parameter.grad for name, parameter in model.named_parameters() if ".indexer." not in name]
    assert all(gradient is not None for gradient in found)
    return [gradient for gradient in found if gradient is not None]


def test_loss_is_that_of_transformers() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    reference = LlamaForCausalLM(LlamaConfig(**LLAMA))
    model = made(LLAMA)
    model.load_state_dict(reference.state_dict())
    token_ids, labels = batch()
    # transformers shifts the labels itself: the last of these is for no position.
    shifted = torch.cat((torch.full((2, 1), IGNORED), labels), dim=1)
    expected = reference(torch.cat((token_ids, labels[:, -1:]), dim=1), labels=shifted).loss
    torch.testing.assert_close(model(token_ids, labels), expected)


@pytest.mark.parametrize("recompute", RECOMPUTES)
@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())
def test_gradients_do_not_depend_on_what_is_computed_again(fields: dict[str, Any], recompute: Recompute) -> None:
    def run(kernels: Kernels, recompute: Recompute, loss_chunk: int | None) -> tuple[Tensor, list[Tensor]]:
        model = made(fields, kernels=kernels, loss_chunk=loss_chunk)
        set_recompute(model, recompute)
        loss = model(*batch())
        loss.backward()
        return loss.detach(), gradients(model)

    loss, expected = run("eager", "none", None)
    again, found = run("fused", recompute, 7)
    torch.testing.assert_close(again, loss)
    # Gradients of Gemma-4, which does not divide its scores, are up to 1.9, those of Gemma-3 0.3; so is their rounding.
    atol = 3e-6 if fields["model_type"] in ("gemma4_text", "gemma4_unified_text") else 1e-6
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("recompute", RECOMPUTES)
def test_a_step_runs_on_the_meta_device(recompute: Recompute) -> None:
    model = made(DEEPSEEK_V3, device="meta", dtype=torch.bfloat16, loss_chunk=7)
    set_recompute(model, recompute)
    token_ids = torch.empty(1, 24, dtype=torch.long, device="meta")
    with measuring():
        model(token_ids, token_ids).backward()
    assert len(gradients(model)) == len(list(model.parameters()))


# --- Multi-token prediction --------------------------------------------------------------------------------------


def test_every_prediction_layer_is_in_the_loss() -> None:
    """Two layers weigh half each: with the head's logits all zero, each loss is log V, and the total log V x 1.3."""
    model = made(TWO_PREDICTIONS)
    torch.nn.init.zeros_(model.lm_head.weight)
    torch.testing.assert_close(model(*batch()), torch.tensor(96.0).log() * 1.3)


@pytest.mark.parametrize("fields", [TWO_PREDICTIONS, GLM4_MOE | {"num_nextn_predict_layers": 1}], ids=["v3", "glm4"])
def test_the_equations_of_multi_token_prediction(fields: dict[str, Any]) -> None:
    """DeepSeek-V3, eq. 21-25, position by position: depth k runs over the first S - k positions alone.

    The input at position i is the hidden state of depth k - 1 and the embedding of token i + k; it predicts token
    i + k + 1. Whether a prompt's tokens are scored has no part in it.
    """
    model = made(fields, dtype=torch.float64, mtp_weight=0.5)
    token_ids, labels = batch()
    decoder = model.model
    hidden = decoder(token_ids)
    tables = decoder.rotary_tables(token_ids)

    def mean(hidden: Tensor, targets: Tensor) -> Tensor:
        logits = F.linear(hidden, model.lm_head.weight)
        scored = targets != IGNORED
        return -logits.log_softmax(-1)[scored].gather(1, targets[scored].unsqueeze(1)).mean()

    expected = mean(hidden, labels)
    for depth, layer in enumerate(decoder.mtp_layers, start=1):
        length = token_ids.shape[1] - depth
        embedded = F.embedding(token_ids[:, depth:], decoder.embed_tokens.weight)
        cos, sin = tables[decoder.tables_of_layers[-1]]
        hidden = layer(hidden[:, :length], embedded, (cos[:length], sin[:length]))
        expected = expected + 0.5 / len(decoder.mtp_layers) * mean(hidden, labels[:, depth:])
    torch.testing.assert_close(model(token_ids, labels), expected, rtol=1e-12, atol=0)


def test_without_prediction_layers_the_loss_is_that_of_the_main_model() -> None:
    whole, main = made(DEEPSEEK_V3), made(DEEPSEEK_V3, mtp=False)
    main.load_state_dict({name: tensor for name, tensor in whole.state_dict().items() if "layers.4." not in name})
    assert whole.num_mtp_layers == 1
    whole.mtp_weight = 0
    assert torch.equal(main(*batch()), whole(*batch()))


def test_the_names_of_prediction_layers_go_on() -> None:
    names = made(DEEPSEEK_V3).state_dict().keys() - made(DEEPSEEK_V3, mtp=False).state_dict().keys()
    assert {name.split(".")[2] for name in names} == {"4"}
    assert "model.layers.4.eh_proj.weight" in names


# --- What the loss is divided by ---------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_chunk", [None, 7])
@pytest.mark.parametrize("fields", FAMILIES.values(), ids=FAMILIES.keys())
def test_without_a_label_loss_and_gradients_are_zero(fields: dict[str, Any], loss_chunk: int | None) -> None:
    model = made(fields, loss_chunk=loss_chunk)
    token_ids, labels = batch()
    loss = model(token_ids, torch.full_like(labels, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert not any(gradient.any() for gradient in gradients(model))


def test_a_sequence_of_one_token_has_no_further_token_to_predict() -> None:
    model = made(DEEPSEEK_V3)
    token_ids, labels = batch(1)
    loss = model(token_ids, labels.clamp(min=0))
    model.mtp_weight = 0
    assert loss.isfinite()
    assert torch.equal(loss, model(token_ids, labels.clamp(min=0)))


@pytest.mark.parametrize("fields", [LLAMA, TWO_PREDICTIONS], ids=["llama", "two_predictions"])
def test_accumulated_gradients_are_those_of_the_whole_batch(fields: dict[str, Any]) -> None:
    """One micro-batch has 16 labels, the other 24: means of each would weigh the labels of the first more."""
    token_ids, labels = batch()

    def run(micro_batches: list[tuple[Tensor, Tensor]], *, normalized: bool) -> tuple[Tensor, Tensor]:
        model = made(fields, dtype=torch.float64)
        depths = model.num_mtp_layers
        normalizer = loss_normalizer([labels for _, labels in micro_batches], mtp_layers=depths) if normalized else None
        losses = [model(*each, normalizer=normalizer) for each in micro_batches]
        torch.stack(losses).sum().backward()
        return torch.stack(losses).sum().detach(), torch.cat([each.flatten() for each in gradients(model)])

    pieces = [(token_ids[:1], labels[:1]), (token_ids[1:], labels[1:])]
    loss, expected = run([(token_ids, labels)], normalized=False)
    total, found = run(pieces, normalized=True)
    torch.testing.assert_close(total, loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)  # routers compute in fp32
    of_means = run(pieces, normalized=False)[1]
    assert F.cosine_similarity(of_means, expected, dim=0) < 0.999


def test_a_normalizer_counts_each_depth() -> None:
    _, labels = batch()
    labels[1, 20:] = IGNORED
    normalizer = loss_normalizer([labels, labels[1:]], mtp_layers=2)
    # The first sequence scores positions 8 to 23, the second, which is there twice, 0 to 19; each depth has one fewer
    # where its first position is scored.
    assert normalizer.scored_tokens.tolist() == [16 + 2 * 20, 16 + 2 * 19, 16 + 2 * 18]
    assert normalizer.ranks == 1
    assert loss_normalizer([torch.full((1, 4), IGNORED)]).scored_tokens.tolist() == [1]


# --- Wrong input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("token_ids", "labels", "said"),
    [
        (torch.zeros(2, 8).long(), torch.zeros(2, 7).long(), r"labels = \(2, 7\)"),
        (torch.zeros(8).long(), torch.zeros(8).long(), r"must have the shape \(sequences, length\)"),
        (torch.zeros(2, 8).long(), torch.zeros(2, 8).int(), r"labels = 'torch.int32': must be torch.int64"),
        (torch.zeros(2, 8), torch.zeros(2, 8).long(), r"token_ids = 'torch.float32': must be torch.int64"),
    ],
    ids=["shape", "one_dimension", "labels_dtype", "ids_dtype"],
)
def test_a_batch_of_another_form_is_refused(token_ids: Tensor, labels: Tensor, said: str) -> None:
    model = made(LLAMA)
    with pytest.raises(UserError, match=said):
        model(token_ids, labels)


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ({"loss_chunk": 0}, "loss_chunk = 0: must be a whole number of tokens"),
        ({"loss_chunk": 2.0}, "loss_chunk = 2.0: must be a whole number of tokens"),
        ({"mtp": "no"}, "mtp = 'no': must be True or False"),
        ({"mtp_weight": -1}, "mtp_weight = -1: must be a finite number"),
        ({"mtp_weight": float("nan")}, "mtp_weight = nan: must be a finite number"),
        ({"kernels": "flash"}, "kernels = 'flash': must be one of fused, eager"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_arguments_that_cannot_be(argument: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        build_training_model(LLAMA, **argument)


@pytest.mark.parametrize(
    ("labels", "mtp_layers", "said"),
    [
        ([], 0, "labels = 'list': must be a list of the labels of each micro-batch"),
        (torch.zeros(2, 8).long(), 0, "labels = 'Tensor': must be a list of the labels of each micro-batch"),
        ([torch.zeros(2, 8)], 0, r"labels = '\(2, 8\) in torch.float32': each must have the shape"),
        ([torch.zeros(2, 8).long()], -1, "mtp_layers = -1: must be a number of layers"),
    ],
    ids=["empty", "tensor", "dtype", "mtp_layers"],
)
def test_what_is_no_list_of_labels_is_refused(labels: Any, mtp_layers: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        loss_normalizer(labels, mtp_layers=mtp_layers)


def test_an_unknown_recompute_is_refused() -> None:
    with pytest.raises(UserError, match="recompute = 'some': must be one of none, selective, per_op, full, or"):
        set_recompute(made(LLAMA, device="meta"), "some")  # type: ignore[arg-type]


def test_a_normalizer_that_does_not_fit_is_refused() -> None:
    token_ids, labels = batch()
    model = made(DEEPSEEK_V3, device="meta")
    with pytest.raises(UserError, match=r"context_ranks = 0: must be a number of ranks, at least 1"):
        loss_normalizer([labels], context_ranks=0)
    with pytest.raises(UserError, match=r"context_ranks = 2: must divide the number of ranks in the group \(1\)"):
        loss_normalizer([labels], context_ranks=2)
    with pytest.raises(UserError, match=r"further = 'for 0 mtp_layers': call batch_of_rank with mtp_layers=1"):
        model(token_ids, labels, further=())
    with pytest.raises(UserError, match=r"normalizer = 'for 0 mtp_layers': call loss_normalizer with mtp_layers=1"):
        model(token_ids, labels, normalizer=loss_normalizer([labels]))
    tokens: Any = 40
    with pytest.raises(UserError, match=r"normalizer = 'int': must be the result of loss_normalizer"):
        model(token_ids, labels, normalizer=tokens)
