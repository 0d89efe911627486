"""What a rank has of a divided model; and that such a model is initialized and saved as the undivided one."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.shrunken import FAMILIES
from tests.torch_models.ecosystem.training_steps import Way, batch, fields_of, undivided
from tests.torch_models.parallel.divided_steps import IN_FP32, Fields, divided_model, layout_of
from tests.worlds import World
from torch_models import build_training_model, initialize, load_training_model, save_checkpoint
from torch_models.parallel.apply import apply_layout
from torch_models.parallel.experts import Exchange, Splits
from torch_models.parallel.mesh import build_meshes

SEED = 5
WIDE_EXPERTS = replace(IN_FP32, expert_width=32)


def locals_of(family: str, fields: Fields, way: Way) -> dict[str, Any]:
    """This rank's parts of the parameters."""
    model = divided_model(family, fields, way)
    return {name: parameter.to_local() for name, parameter in model.named_parameters()}  # type: ignore[attr-defined]


def shapes(family: str, fields: Fields, way: Way = IN_FP32) -> dict[str, tuple[int, ...]]:
    return {name: tuple(local.shape) for name, local in locals_of(family, fields, way).items()}


def test_a_rank_of_tp_has_heads_columns_and_words(two_ranks: World) -> None:
    found, of_other_rank = two_ranks.run(shapes, "gpt_oss", {"tp": 2})
    assert found == of_other_rank
    attention, mlp = "model.layers.0.self_attn", "model.layers.0.mlp"
    assert {name: shape for name, shape in found.items() if ".1." not in name} == {
        "model.embed_tokens.weight": (48, 64),
        "model.layers.0.input_layernorm.weight": (64,),
        f"{attention}.sinks": (4,),
        f"{attention}.q_proj.weight": (64, 64),
        f"{attention}.q_proj.bias": (64,),
        f"{attention}.k_proj.weight": (16, 64),
        f"{attention}.k_proj.bias": (16,),
        f"{attention}.v_proj.weight": (16, 64),
        f"{attention}.v_proj.bias": (16,),
        f"{attention}.o_proj.weight": (64, 64),
        f"{attention}.o_proj.bias": (64,),
        "model.layers.0.post_attention_layernorm.weight": (64,),
        f"{mlp}.router.weight": (6, 64),
        f"{mlp}.router.bias": (6,),
        f"{mlp}.experts.gate_up_proj": (6, 64, 32),
        f"{mlp}.experts.gate_up_proj_bias": (6, 32),
        f"{mlp}.experts.down_proj": (6, 16, 64),
        f"{mlp}.experts.down_proj_bias": (6, 64),
        "model.norm.weight": (64,),
        "lm_head.weight": (48, 64),
    }


def test_latents_are_whole_on_every_rank_of_tp(two_ranks: World) -> None:
    found = two_ranks.run(shapes, "deepseek_v3", {"tp": 2})[0]
    attention = "model.layers.1.self_attn."
    assert {name.removeprefix(attention): shape for name, shape in found.items() if attention in name} == {
        "q_a_proj.weight": (40, 64),
        "q_a_layernorm.weight": (40,),
        "q_b_proj.weight": (2 * (16 + 8), 40),
        "kv_a_proj_with_mqa.weight": (32 + 8, 64),
        "kv_a_layernorm.weight": (32,),
        "kv_b_proj.weight": (2 * (16 + 20), 32),
        "o_proj.weight": (64, 2 * 20),
    }


# Of 16 experts: those of this rank of ep, then the part of this rank of fsdp. All else is of fsdp.
@pytest.mark.parametrize(
    ("fields", "way", "gate_up", "down", "router"),
    [
        ({"fsdp": 4, "ep": 2}, IN_FP32, (4, 48, 64), (4, 64, 24), (4, 64)),
        ({"dp": 2, "fsdp": 2, "ep": 2}, IN_FP32, (8, 48, 64), (8, 64, 24), (8, 64)),
        ({"dp": 2, "fsdp": 2, "ep": 4}, IN_FP32, (4, 48, 64), (4, 64, 24), (8, 64)),
    ],
    ids=str,
)
def test_a_rank_of_ep_has_experts(
    fields: Fields,
    way: Way,
    gate_up: tuple[int, ...],
    down: tuple[int, ...],
    router: tuple[int, ...],
    four_ranks: World,
) -> None:
    mlp = "model.layers.1.mlp"
    for found in four_ranks.run(shapes, "deepseek_v3", fields, way):
        assert found[f"{mlp}.experts.gate_up_proj"] == gate_up
        assert found[f"{mlp}.experts.down_proj"] == down
        assert found[f"{mlp}.gate.weight"] == router


def test_more_ranks_than_experts_divide_rows_within_an_expert(four_ranks: World) -> None:
    for found in four_ranks.run(shapes, "mixtral", {"fsdp": 4, "ep": 2}, replace(IN_FP32, experts=2)):
        assert found["model.layers.0.mlp.experts.gate_up_proj"] == (1, 80 // 2, 64)
        assert found["model.layers.0.mlp.experts.down_proj"] == (1, 64 // 2, 40)


def held_and_kept(family: str, fields: Fields) -> tuple[int, int]:
    """Bytes of this rank's parts, and of the memory in which they are."""
    found = locals_of(family, fields, IN_FP32).values()
    memory = {local.untyped_storage().data_ptr(): local.untyped_storage().nbytes() for local in found}
    return sum(local.nbytes for local in found), sum(memory.values())


@pytest.mark.parametrize("fields", [{"tp": 2}, {"fsdp": 2, "ep": 2}], ids=str)
def test_a_rank_keeps_its_part_alone(fields: Fields, two_ranks: World) -> None:
    """A part that is a view of the whole parameter would keep the whole in memory."""
    for held, kept in two_ranks.run(held_and_kept, "mixtral", fields):
        assert held == kept


# --- Routing -------------------------------------------------------------------------------------------------------


def splits_of_step(first_half: bool) -> tuple[list[Splits], Tensor]:
    """The rows that the layers exchange in a step, and the gradient of a stack of experts of this rank.

    With `first_half` every token chooses among the experts of the first rank.
    """
    fields: Fields = {"fsdp": 2, "ep": 2}
    model, seen = divided_model("deepseek_v3", fields, IN_FP32), []

    class Watched(Exchange):
        def _splits(self, *args: Tensor) -> Splits:
            seen.append(super()._splits(*args))
            return seen[-1]

    for layer in model.model.layers[1:]:
        layer.mlp.experts.exchange = Watched(layer.mlp.experts.exchange.mesh, 1.0)
        if first_half:
            layer.mlp.gate.e_score_correction_bias[:8] += 100.0
    model(*batch(0, dist.get_rank())).backward()
    return seen, model.model.layers[1].mlp.experts.gate_up_proj.grad.to_local()


def test_ranks_exchange_as_many_rows_as_tokens_choose(two_ranks: World) -> None:
    (first, _), (second, _) = two_ranks.run(splits_of_step, False)
    assert len(first) == len(second) == 2  # a layer, and that of multi-token prediction
    for of_first, of_second in zip(first, second, strict=True):
        assert sum(of_first.sent) == sum(of_second.sent) == 2 * 20 * 3  # tokens, and the experts of each
        assert of_first.received == [of_first.sent[0], of_second.sent[0]]
        assert of_second.received == [of_first.sent[1], of_second.sent[1]]
        assert of_first.sent[0] != of_first.sent[1], "balanced by chance: this routing shows nothing"


def test_a_rank_whose_experts_nobody_chooses(two_ranks: World) -> None:
    (first, of_first), (second, of_second) = two_ranks.run(splits_of_step, True)
    assert [splits.received for splits in second] == [[0, 0], [0, 0]]
    assert [splits.received for splits in first] == [[120, 120], [120, 120]]
    assert of_first.any()
    assert not of_second.any()


# --- First values, checkpoints, imports ------------------------------------------------------------------------------


def saved_from_meta(family: str, fields: Fields, folder: str) -> dict[str, Tensor]:
    """Divide a model on the meta device, allocate, initialize and save it; return its weights."""
    layout = layout_of(fields)
    model = build_training_model(fields_of(family, WIDE_EXPERTS), device="meta")
    apply_layout(model, layout, build_meshes(layout, "cpu"))
    model.to_empty(device="cpu")
    initialize(model, seed=SEED)
    save_checkpoint(model, folder)
    return {name: undivided(tensor) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("smollm", {"fsdp": 2, "tp": 2}),
        ("gpt_oss", {"dp": 2, "tp": 2}),
        ("deepseek_v3", {"fsdp": 2, "tp": 2}),
        ("mixtral", {"dp": 2, "fsdp": 2, "ep": 2}),
    ],
    ids=str,
)
def test_first_values_and_checkpoint_are_those_of_the_undivided(
    family: str, fields: Fields, tmp_path: Path, four_ranks: World
) -> None:
    expected = build_training_model(fields_of(family, WIDE_EXPERTS), seed=SEED).state_dict()
    for found in four_ranks.run(saved_from_meta, family, fields, str(tmp_path / "saved")):
        assert list(found) == list(expected)
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    loaded = load_training_model(tmp_path / "saved").state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in expected.items())


def test_nothing_divided_is_imported_for_a_plain_model() -> None:
    """Torch's DTensor takes half as long to import as torch."""
    script = f"""
import sys
import torch_models.parallel
from torch_models import build_training_model
build_training_model({FAMILIES["deepseek_v3"]}, device="meta")
print([name for name in ("torch.distributed.tensor", "torch.distributed.fsdp") if name in sys.modules])
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (process.stdout.strip(), process.stderr) == ("[]", "")
