"""What cannot be divided is refused with field, value and rule, before anything is changed."""

from typing import Any

import pytest
import torch

from tests.shrunken import FAMILIES
from tests.torch_models.parallel.divided_steps import Fields, divided_model, layout_of
from tests.worlds import World
from torch_models import ArgumentError, UserError, build_training_model
from torch_models.parallel.apply import apply_layout
from torch_models.parallel.mesh import Meshes, build_meshes

NO_MESHES = Meshes(None, None, None, None)


def model_of(family: str, **fields: Any) -> Any:
    return build_training_model(FAMILIES[family] | fields, device="meta")


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("llama", {"tp": 5}, "tp = 5: must divide num_attention_heads (8)"),
        ("llama", {"tp": 16}, "tp = 16: must divide num_attention_heads (8)"),
        ("qwen2", {"tp": 4}, "tp = 4: must divide num_key_value_heads (2)"),
        (
            "deepseek_v32",
            {"tp": 2},
            "tp = 2: must be 1: the indexer of sparse attention sums over all its heads, and is not divided here",
        ),
        (
            "glm_moe_dsa",
            {"cp": 2},
            "cp = 2: must be 1: attention has keys that an indexer chooses, which torch's ring attention does not",
        ),
        ("gpt_oss", {"fsdp": 2, "ep": 4}, "ep = 4: must divide the number of experts (6)"),
        ("llama", {"fsdp": 2, "ep": 2}, "ep = 2: must be 1: config has no experts"),
        ("mistral", {"cp": 2}, "cp = 2: must be 1: attention has a window, which torch's ring attention does not"),
        ("gemma2", {"cp": 2}, "cp = 2: must be 1: attention has a window, which torch's ring attention does not"),
    ],
)
def test_what_does_not_divide(family: str, fields: Fields, message: str) -> None:
    model = model_of(family)
    before = dict(model.named_parameters())
    with pytest.raises(ArgumentError) as error:
        apply_layout(model, layout_of(fields), NO_MESHES)
    assert str(error.value) == message
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_rows_of_a_grouped_product_in_16_bits() -> None:
    model = model_of("gpt_oss").to(torch.bfloat16)
    with pytest.raises(ArgumentError, match=r"tp = 2: must divide the intermediate_size of an expert \(40\) in mul"):
        apply_layout(model, layout_of({"tp": 2}), NO_MESHES)


def test_experts_by_their_second_dimension() -> None:
    """Of 6 experts, 2 ranks have 3 each; 5 ranks of fsdp divide them, which divide neither 64 nor 80."""
    rule = r"leaves 5 ranks of fsdp for each stack of experts, which do not divide hidden_size \(64\)"
    with pytest.raises(ArgumentError, match=rule):
        apply_layout(model_of("gpt_oss"), layout_of({"fsdp": 10, "ep": 2}), NO_MESHES)


def test_precision_without_fully_shard() -> None:
    with pytest.raises(ArgumentError, match=r"param_dtype = 'torch.bfloat16': is for dp x fsdp > 1; with tp alone"):
        apply_layout(model_of("llama"), layout_of({"tp": 2}), NO_MESHES, param_dtype=torch.bfloat16)


def test_gradients_that_torch_would_divide_twice() -> None:
    with pytest.raises(ArgumentError, match=r"reduce_dtype = 'torch.float16': must be torch.float32 or torch.bfloat16"):
        apply_layout(model_of("mixtral"), layout_of({"fsdp": 2, "ep": 2}), NO_MESHES, reduce_dtype=torch.float16)


def test_another_model() -> None:
    with pytest.raises(ArgumentError, match="model = 'Linear': must be the result of build_training_model"):
        apply_layout(torch.nn.Linear(2, 2), layout_of({"tp": 2}), NO_MESHES)  # type: ignore[arg-type]


def test_no_process_group() -> None:
    with pytest.raises(UserError, match="a layout needs a process group"):
        build_meshes(layout_of({"tp": 2}), "cpu")


def _meshes_error(fields: Fields) -> str:
    with pytest.raises(ArgumentError) as error:
        build_meshes(layout_of(fields), "cpu")
    return str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tp": 4}, "num_gpus = 2: must be the product of the axes, 4"),
        (
            {"fsdp": 2, "ep": 3},
            "ep = 3: must divide fsdp x cp (2), or be a multiple of it that divides dp x fsdp x cp (2)",
        ),
        ({"tp": 2, "ep": 2}, "ep = 2: must be 1 with tp > 1: each of the two divides the experts"),
    ],
)
def test_ranks_of_another_layout(fields: Fields, message: str, two_ranks: World) -> None:
    assert two_ranks.run(_meshes_error, fields) == [message, message]


def _length_error() -> str:
    model = divided_model("llama", {"tp": 2})
    token_ids = torch.zeros(1, 7, dtype=torch.int64)
    with pytest.raises(ArgumentError) as error:
        model(token_ids, token_ids)
    return str(error.value)


def _second_layout_error() -> str:
    model = divided_model("llama", {"tp": 2})
    with pytest.raises(ArgumentError) as error:
        apply_layout(model, layout_of({"tp": 2}), build_meshes(layout_of({"tp": 2}), "cpu"))
    return str(error.value)


def test_a_sequence_that_tp_does_not_divide(two_ranks: World) -> None:
    message = "sequence_length = 7: must be a multiple of tp (2), which divides the positions"
    assert two_ranks.run(_length_error) == [message, message]


def test_a_model_that_is_divided_already(two_ranks: World) -> None:
    message = "model = 'config': is divided already: apply one layout to it, once"
    assert two_ranks.run(_second_layout_error) == [message, message]
