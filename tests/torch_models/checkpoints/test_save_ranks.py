"""Two processes save one model: the bytes are those of one process, and an error of one is an error of both."""

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from tests.shrunken import DEEPSEEK_V3, FAMILIES
from tests.worlds import World
from torch_models import UserError, build_training_model, load_training_model, save_checkpoint
from torch_models.checkpoints import gather, save
from torch_models.training.model import TrainingModel

RANKS = 2
MAX_SHARD_BYTES = 250_000
SLICE_BYTES = 20_000
# Sizes that two ranks cannot divide equally.
MIXTURE = DEEPSEEK_V3 | {"vocab_size": 97, "q_lora_rank": 41, "n_routed_experts": 15, "n_group": 1, "topk_group": 1}
TIED = FAMILIES["smollm"]


class Saved(NamedTuple):
    """What one rank saw of saving a model."""

    error: str | None
    held: list[int]  # the bytes of each file that this rank wrote
    gathered: list[int]  # the bytes of each piece of a divided tensor that it had whole


# --- What the ranks do -------------------------------------------------------------------------------------------


def drawn(fields: dict[str, Any]) -> TrainingModel:
    return build_training_model(fields, seed=0)


def replicated() -> nn.Module:
    return DistributedDataParallel(drawn(MIXTURE))


def replicated_compiled() -> Any:
    return torch.compile(replicated())


def layers_compiled() -> nn.Module:
    model = drawn(MIXTURE)
    for number, layer in enumerate(model.model.layers):
        model.model.layers[number] = torch.compile(layer)  # type: ignore[assignment]
    return model


def divided(model: TrainingModel) -> nn.Module:
    for layer in model.model.layers:
        fully_shard(layer)
    if model.spec.tie_word_embeddings:
        fully_shard([model.model.embed_tokens, model.lm_head])
    fully_shard(model)
    return model


def sharded() -> nn.Module:
    model = divided(drawn(MIXTURE))
    model(torch.arange(8).unsqueeze(0), torch.arange(1, 9).unsqueeze(0))  # now the root's parameters are whole
    return model


def sharded_compiled() -> Any:
    return torch.compile(divided(drawn(MIXTURE)))


def tied_sharded() -> nn.Module:
    return divided(drawn(TIED))


def tied_tensor_parallel() -> nn.Module:
    plan: dict[str, Any] = {"model.embed_tokens": RowwiseParallel(input_layouts=Replicate())}
    plan["lm_head"] = ColwiseParallel()
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        plan[f"model.layers.*.{name}"] = ColwiseParallel()
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        plan[f"model.layers.*.{name}"] = RowwiseParallel()
    return parallelize_module(drawn(TIED), init_device_mesh("cpu", (RANKS,)), plan)


def on_meta_on_rank_1() -> nn.Module:
    return drawn(TIED).to("meta") if dist.get_rank() == 1 else drawn(TIED)


def another_on_rank_1() -> nn.Module:
    return drawn(TIED if dist.get_rank() == 0 else MIXTURE)


def tied() -> nn.Module:
    return drawn(TIED)


def saved(make: Callable[[], nn.Module], folder: Path) -> Saved:
    """Save the model that `make` returns, and note the memory that it takes."""
    held: list[int] = []
    gathered: list[int] = []
    allocate, full_tensor = gather.allocate, DTensor.full_tensor

    def noted_allocate(*args: Any) -> dict[str, Tensor]:
        values = allocate(*args)
        held.append(sum(value.nbytes for value in values.values()))
        return values

    def noted_full_tensor(tensor: DTensor) -> Tensor:
        whole = full_tensor(tensor)
        gathered.append(whole.nbytes)
        return whole

    model = make()
    with ExitStack() as patched:
        patched.enter_context(patch.object(gather, "SLICE_BYTES", SLICE_BYTES))
        patched.enter_context(patch.object(save, "allocate", noted_allocate))
        patched.enter_context(patch.object(DTensor, "full_tensor", noted_full_tensor))
        try:
            save_checkpoint(model, folder, max_shard_bytes=MAX_SHARD_BYTES)
        except UserError as error:
            return Saved(str(error), held, gathered)
    return Saved(None, held, gathered)


def saved_apart(parent: Path) -> Saved:
    return saved(tied, parent / f"of rank {dist.get_rank()}")


def saved_on_a_full_disk_of_rank_1(folder: Path) -> Saved:
    save_file = safetensors.torch.save_file

    def fails(tensors: Mapping[str, Tensor], file: Path, **options: Any) -> None:
        save_file(dict(tensors), file, **options)
        if dist.get_rank() == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with patch.object(safetensors.torch, "save_file", fails):
        return saved(tied, folder)


# --- What they saw -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What one process writes of the same models."""
    found = {}
    for name, fields in (("mixture", MIXTURE), ("tied", TIED)):
        folder = tmp_path_factory.mktemp("alone") / name
        save_checkpoint(drawn(fields), folder, max_shard_bytes=MAX_SHARD_BYTES)
        found[name] = contents(folder)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (replicated, "mixture"),
        (replicated_compiled, "mixture"),
        (layers_compiled, "mixture"),
        (sharded, "mixture"),
        (sharded_compiled, "mixture"),
        (tied_sharded, "tied"),
        (tied_tensor_parallel, "tied"),
    ],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_the_bytes_are_those_of_one_process(
    make: Callable[[], nn.Module],
    fields: str,
    expected: dict[str, dict[str, bytes]],
    two_ranks: World,
    tmp_path: Path,
) -> None:
    """The ranks write the files in turn."""
    results = two_ranks.run(saved, make, tmp_path / "new")
    assert [result.error for result in results] == [None] * RANKS
    assert contents(tmp_path / "new") == expected[fields]
    files = sum(file.endswith(".safetensors") for file in expected[fields])
    assert files >= RANKS
    assert [len(result.held) for result in results] == [len(range(rank, files, RANKS)) for rank in range(RANKS)]


def test_a_rank_holds_one_file_and_one_slice(two_ranks: World, tmp_path: Path) -> None:
    results = two_ranks.run(saved, sharded, tmp_path / "new")
    largest_tensor = max(tensor.nbytes for tensor in load_training_model(tmp_path / "new").parameters())
    assert largest_tensor > SLICE_BYTES
    for result in results:
        assert 0 < max(result.held) <= MAX_SHARD_BYTES
        assert 0 < max(result.gathered) <= SLICE_BYTES


def test_a_model_without_values_on_one_rank(two_ranks: World, tmp_path: Path) -> None:
    on_meta = "model = 'config': has no values to save: model.embed_tokens.weight is on the meta device"
    results = two_ranks.run(saved, on_meta_on_rank_1, tmp_path / "new")
    assert [result.error for result in results] == [f"rank 1: {on_meta}", on_meta]
    assert not any(tmp_path.iterdir())


def test_two_models(two_ranks: World, tmp_path: Path) -> None:
    models = [build_training_model(fields, device="meta") for fields in (TIED, MIXTURE)]
    sizes = [sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers())) for model in models]
    counts = [len(models[0].state_dict()) - 1, len(models[1].state_dict())]
    differ = f"{counts[0]} tensors of {sizes[0]} bytes and {counts[1]} tensors of {sizes[1]} bytes"
    results = two_ranks.run(saved, another_on_rank_1, tmp_path / "new")
    assert [result.error for result in results] == [f"model: ranks 0 and 1 differ: {differ}"] * RANKS
    assert not any(tmp_path.iterdir())


def test_two_folders(two_ranks: World, tmp_path: Path) -> None:
    results = two_ranks.run(saved_apart, tmp_path)
    differ = f"folder: ranks 0 and 1 differ: {tmp_path}/of rank 0 and {tmp_path}/of rank 1"
    assert [result.error for result in results] == [differ] * RANKS
    assert not any(tmp_path.iterdir())


def test_a_folder_that_is_not_empty(two_ranks: World, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    results = two_ranks.run(saved, tied, tmp_path)
    assert [result.error for result in results] == [f"{tmp_path}: is not empty; give a new folder"] * RANKS
    assert contents(tmp_path) == {"notes.txt": b"mine"}


def test_a_full_disk_of_one_rank(two_ranks: World, tmp_path: Path) -> None:
    of_first, of_second = (result.error for result in two_ranks.run(saved_on_a_full_disk_of_rank_1, tmp_path / "new"))
    assert of_second.startswith(f"{tmp_path}/new/model-00002-of-")
    assert of_second.endswith("No space left on device")
    assert of_first == f"rank 1: {of_second}"
    assert not any(tmp_path.iterdir())
