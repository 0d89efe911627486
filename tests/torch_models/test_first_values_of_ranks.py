"""First values of divided parameters: on 2 and 4 processes the full values are those of one process."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn

from tests.shrunken import DEEPSEEK_V3, GEMMA2, GPT_OSS, LLAMA, QWEN2
from torch_models import build, first_values, initialize
from torch_models.errors import UserError
from torch_models.fields.config import spec_from_fields
from torch_models.modules.language_model import CausalLM

SEED = 11
TIMEOUT = 300  # seconds of one world
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


# --- What the processes of a world check ---------------------------------------------------------------------------


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
    first_values._generate = counted
    try:
        initialize(part, seed=SEED)
        of_rank = len(drawn)
        initialize(whole, seed=SEED)
        assert len(drawn) - of_rank == of_rank * dist.get_world_size() > 500
    finally:
        first_values._generate = plain


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


def run_checks(rank: int, ranks: int, folder: str) -> None:
    """Run every check in one process of the world; write what fails into a file named after check and rank."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=ranks)
    first_values.BLOCK = 256  # so that most parameters have several blocks
    for name, function in CHECKS.items():
        try:
            function()
            said = ""
        except (Exception, pytest.fail.Exception) as error:  # the other processes go on, so that none waits for another
            import traceback

            said = "".join(traceback.format_exception(error))
        Path(folder, f"{name}.{rank}").write_text(said, encoding="utf-8")
    dist.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4], ids=lambda ranks: f"{ranks}_ranks")
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    folder = tmp_path_factory.mktemp("world")
    context = torch.multiprocessing.get_context("spawn")
    arguments = [(rank, request.param, str(folder)) for rank in range(request.param)]
    processes = [context.Process(target=run_checks, args=each, daemon=True) for each in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join(TIMEOUT)
        if process.is_alive():
            process.kill()
    return request.param, folder


@pytest.mark.parametrize("name", CHECKS)
def test_ranks(world: tuple[int, Path], name: str) -> None:
    ranks, folder = world
    files = [folder / f"{name}.{rank}" for rank in range(ranks)]
    assert [file.read_text(encoding="utf-8") if file.exists() else "no result" for file in files] == [""] * ranks
