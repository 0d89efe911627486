"""First values of divided parameters: on 2 and 4 processes the full values are those of one process."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from tests.shrunken import DEEPSEEK_V3, GEMMA2, GPT_OSS, LLAMA, QWEN2
from tests.worlds import World
from torch_models import build, first_values, initialize
from torch_models.errors import UserError
from torch_models.fields.config import spec_from_fields
from torch_models.modules.language_model import CausalLM

SEED = 11
TIED = LLAMA | {"tie_word_embeddings": True}
# No size is a multiple of 2 or 4, but those that heads must divide.
UNEVEN = LLAMA | {"vocab_size": 97, "intermediate_size": 113, "hidden_size": 66, "num_attention_heads": 3}
FAMILIES = {"deepseek_v3": DEEPSEEK_V3, "gpt_oss": GPT_OSS, "gemma2": GEMMA2, "qwen2": QWEN2, "tied": TIED}


def model_of(fields: dict[str, Any], dtype: torch.dtype = torch.float32) -> CausalLM:
    return build(spec_from_fields(fields, "x"), dtype=dtype)


def undivided(fields: dict[str, Any], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    model = model_of(fields, dtype)
    initialize(model, seed=SEED)
    return dict(model.state_dict())


@torch.no_grad()
def forget(module: nn.Module) -> None:
    for tensor in module.state_dict().values():
        getattr(tensor, "_local_tensor", tensor).fill_(float("nan"))


def check(module: nn.Module, expected: dict[str, Tensor]) -> None:
    found = module.state_dict()
    assert set(found) == set(expected)
    for name, tensor in found.items():
        full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
        assert torch.equal(full, expected[name]), name


def sharded(model: CausalLM, mesh: Any = None, **options: Any) -> CausalLM:
    from torch.distributed.fsdp import fully_shard

    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, **options)
    fully_shard(model, mesh=mesh)
    return model


# --- What the ranks check ------------------------------------------------------------------------------------------


def check_fully_shard() -> None:
    for name, fields in {**FAMILIES, "uneven": UNEVEN}.items():
        model = sharded(model_of(fields))
        forget(model)
        initialize(model, seed=SEED)
        check(model, undivided(fields))
        assert name != "tied" or model.lm_head.weight is model.model.embed_tokens.weight


def check_meta_then_to_empty() -> None:
    model = sharded(build(spec_from_fields(DEEPSEEK_V3, "x"), device="meta", dtype=torch.bfloat16))
    with pytest.raises(UserError, match=r"model\.embed_tokens\.weight is on the meta device"):
        initialize(model, seed=SEED)
    model.to_empty(device="cpu")
    forget(model)
    initialize(model, seed=SEED)
    check(model, undivided(DEEPSEEK_V3, torch.bfloat16))
    model(torch.zeros(1, 4, dtype=torch.int64)).sum().backward()
    check(model, undivided(DEEPSEEK_V3, torch.bfloat16))


def check_columns_of_experts() -> None:
    from torch.distributed.tensor import Shard

    for fields in (DEEPSEEK_V3, GPT_OSS):
        model = sharded(model_of(fields), shard_placement_fn=lambda p: Shard(1) if p.ndim == 3 else Shard(0))
        placements = {p.placements for p in model.parameters()}
        assert placements == {(Shard(0),), (Shard(1),)}
        forget(model)
        initialize(model, seed=SEED)
        check(model, undivided(fields))


def check_any_placements() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2))
    expected = undivided(GPT_OSS)
    for first, second in ((0, 1), (1, 0), (0, 0), (1, 1), (-1, 0), (None, 1), (0, None), (None, None)):
        placements = [Replicate() if dim is None else Shard(dim) for dim in (first, second)]
        model = model_of(GPT_OSS)
        for owner in list(model.modules()):
            for name, parameter in list(owner.named_parameters(recurse=False)):
                if parameter.ndim > 1:
                    divided = nn.Parameter(distribute_tensor(parameter.detach(), mesh, placements))
                    owner.register_parameter(name, divided)
        forget(model)
        initialize(model, seed=SEED)
        check(model, expected)


def check_tensor_parallel() -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
    from torch.distributed.tensor.placement_types import _StridedShard

    mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("dp", "tp"))
    plan: dict[str, Any] = {f"model.layers.*.self_attn.{name}_proj": ColwiseParallel() for name in "qkv"}
    plan |= {f"model.layers.*.mlp.{name}_proj": ColwiseParallel() for name in ("gate", "up")}
    plan |= {"model.layers.*.mlp.down_proj": RowwiseParallel(), "model.layers.*.self_attn.o_proj": RowwiseParallel()}
    plan |= {"model.embed_tokens": RowwiseParallel(), "lm_head": ColwiseParallel()}
    for fields in (QWEN2, QWEN2 | {"vocab_size": 97, "intermediate_size": 116}):
        model = model_of(fields)
        parallelize_module(model, mesh["tp"], plan)
        forget(model)
        initialize(model, seed=SEED)
        check(model, undivided(fields))
        model = sharded(parallelize_module(model_of(fields), mesh["tp"], plan), mesh["dp"])
        of_up, of_down = (getattr(model.model.layers[0].mlp, f"{name}_proj").weight for name in ("up", "down"))
        if mesh["tp"].size() > 1:
            assert isinstance(of_up.placements[0], _StridedShard)
            assert of_down.placements == (Shard(0), Shard(1))
        forget(model)
        initialize(model, seed=SEED)
        check(model, undivided(fields))


def check_common_seed() -> None:
    from torch.nn.parallel import DistributedDataParallel

    torch.manual_seed(0)
    first = model_of(QWEN2)
    model = sharded(model_of(QWEN2))
    torch.manual_seed(dist.get_rank())
    initialize(model)
    check(model, dict(first.state_dict()))
    replicated = DistributedDataParallel(model_of(QWEN2))
    torch.manual_seed(dist.get_rank())
    initialize(replicated)
    check(replicated.module, dict(first.state_dict()))
    if dist.get_rank() == 0:  # a module of one process waits for no other
        torch.manual_seed(0)
        initialize(model_of(QWEN2))


def check_gathered_parameters() -> None:
    model = sharded(model_of(LLAMA), reshard_after_forward=False)
    with torch.no_grad():
        model(torch.zeros(1, 4, dtype=torch.int64))
    assert not hasattr(model.model.layers[0].mlp.up_proj.weight, "full_tensor")
    initialize(model, seed=SEED)
    check(model, undivided(LLAMA))


def check_each_process_draws_its_part() -> None:
    drawn: list[int] = []
    plain = first_values._generate

    def counted(out: Tensor, value: Any, seed: int, block: int) -> None:
        drawn.append(block)
        plain(out, value, seed, block)

    whole = model_of(LLAMA | {"vocab_size": 256})
    part = sharded(model_of(LLAMA | {"vocab_size": 256}))
    with patch.object(first_values, "_generate", counted):
        initialize(part, seed=SEED)
        of_rank = len(drawn)
        initialize(whole, seed=SEED)
    assert len(drawn) - of_rank == of_rank * dist.get_world_size() > 500


def check_refused() -> None:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    mesh = DeviceMesh("cpu", list(range(dist.get_world_size())))
    first = DeviceMesh("cpu", [0])
    alone = dist.get_rank() > 0
    local = torch.full((3, 8), float("nan"))
    cases = [
        (DTensor.from_local(local, mesh, [Partial()]), "weight has the placement P(sum), which does not say", True),
        (DTensor.from_local(local, first, [Replicate()]), "weight is divided over a device mesh that this pr", alone),
        (
            DTensor.from_local(local, mesh, [Shard(0)], shape=(1, 8), stride=(8, 1)),
            "weight has a part of shape [3, 8] here, where its placements",
            True,
        ),
    ]
    for tensor, said, is_refused in cases:
        linear = nn.Linear(8, 3)
        before = linear.bias.clone()
        linear.weight = nn.Parameter(tensor)
        if not is_refused:
            initialize(linear, seed=SEED)
            continue
        with pytest.raises(UserError) as caught:
            initialize(linear, seed=SEED)
        assert str(caught.value).startswith(said)
        assert torch.equal(linear.bias, before)


CHECKS: dict[str, Callable[[], None]] = {
    name.removeprefix("check_"): function for name, function in list(globals().items()) if name.startswith("check_")
}


def in_small_blocks(name: str) -> None:
    """Run a check on this rank, with blocks so small that most parameters have several."""
    with patch.object(first_values, "BLOCK", 256):
        CHECKS[name]()


@pytest.mark.parametrize("ranks", ["two_ranks", "four_ranks"])
@pytest.mark.parametrize("name", CHECKS)
def test_ranks(name: str, ranks: str, request: pytest.FixtureRequest) -> None:
    world: World = request.getfixturevalue(ranks)
    assert world.run(in_small_blocks, name) == [None] * world.processes
