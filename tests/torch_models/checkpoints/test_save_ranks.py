"""Two processes save one model: the bytes are those of one process, and an error of one is an error of both."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.shrunken import DEEPSEEK_V3, FAMILIES
from torch_models import build_training_model, load_training_model, save_checkpoint

ROOT = Path(__file__).resolve().parents[3]
RANKS = 2
MAX_SHARD_BYTES = 250_000
SLICE_BYTES = 20_000
# Sizes that two ranks cannot divide equally.
MIXTURE = DEEPSEEK_V3 | {"vocab_size": 97, "q_lora_rank": 41, "n_routed_experts": 15, "n_group": 1, "topk_group": 1}
TIED = FAMILIES["smollm"]

SCRIPT = """
import json, sys
from pathlib import Path
import safetensors.torch
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch_models import UserError, build_training_model, save_checkpoint
from torch_models.checkpoints import gather, save

rank, folder, mixture, tied = int(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3]), json.loads(sys.argv[4])
max_shard_bytes, gather.SLICE_BYTES = int(sys.argv[5]), int(sys.argv[6])
dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
held, gathered, errors = [], [], {}
allocate, full_tensor = gather.allocate, DTensor.full_tensor

def noted_allocate(shard, tensors):
    values = allocate(shard, tensors)
    held.append(sum(value.nbytes for value in values.values()))
    return values

def noted_full_tensor(tensor):
    whole = full_tensor(tensor)
    gathered.append(whole.nbytes)
    return whole

save.allocate, DTensor.full_tensor = noted_allocate, noted_full_tensor

def drawn(fields):
    torch.manual_seed(0)
    return build_training_model(fields)

def sharded(fields):
    model = drawn(fields)
    for layer in model.model.layers:
        fully_shard(layer)
    if fields.get("tie_word_embeddings"):
        fully_shard([model.model.embed_tokens, model.lm_head])
    return fully_shard(model)

def tensor_parallel(fields):
    model = drawn(fields)
    mesh = init_device_mesh("cpu", (2,))
    plan = {"model.embed_tokens": RowwiseParallel(input_layouts=Replicate()), "lm_head": ColwiseParallel()}
    for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj"):
        plan[f"model.layers.*.{name}"] = ColwiseParallel()
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        plan[f"model.layers.*.{name}"] = RowwiseParallel()
    return parallelize_module(model, mesh, plan)

def write(name, model):
    try:
        save_checkpoint(model, folder / name, max_shard_bytes=max_shard_bytes)
    except UserError as error:
        errors[name] = str(error)

batch = torch.arange(8).unsqueeze(0), torch.arange(1, 9).unsqueeze(0)
with torch.random.fork_rng():
    write("replicated", DistributedDataParallel(drawn(mixture)))
    write("replicated and compiled", torch.compile(DistributedDataParallel(drawn(mixture))))
    model = drawn(mixture)
    for number, layer in enumerate(model.model.layers):
        model.model.layers[number] = torch.compile(layer)
    write("layers compiled", model)
    dist.barrier()
    model = sharded(mixture)
    model(*batch)  # after forward the parameters of the root are still whole
    gathered.clear()
    write("sharded", model)
    largest = max(gathered)
    write("sharded and compiled", torch.compile(sharded(mixture)))
    write("tied and sharded", sharded(tied))
    write("tied and tensor parallel", tensor_parallel(tied))

    plain = drawn(tied)
    write("meta on rank 1", plain.to("meta") if rank == 1 else plain)
    write("another model on rank 1", drawn(tied if rank == 0 else mixture))
    plain = drawn(tied)
    write(f"folder of rank {rank}", plain)
    (folder / "full").mkdir(exist_ok=True)
    (folder / "full" / "notes.txt").write_text("mine")
    dist.barrier()
    write("full", plain)
    save_file = safetensors.torch.save_file

    def fails(tensors, file, **options):
        save_file(tensors, file, **options)
        if rank == 1:
            raise OSError(28, "No space left on device")

    safetensors.torch.save_file = fails
    write("disk of rank 1", plain)
result = {"held": max(held), "files": len(held), "largest": largest, "errors": errors}
(folder / f"result{rank}").write_text(json.dumps(result))
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which two processes saved, one folder a case, beside what each of them saw."""
    folder = tmp_path_factory.mktemp("ranks")
    rest = [folder, json.dumps(MIXTURE), json.dumps(TIED), str(MAX_SHARD_BYTES), str(SLICE_BYTES)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, str(rank), *rest], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(RANKS)
    ]
    try:
        output = [process.communicate(timeout=300)[0].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * RANKS, "\n".join(output)
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"result{rank}").read_text()) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What one process writes of the same models."""
    saved = {}
    for name, fields in (("mixture", MIXTURE), ("tied", TIED)):
        folder = tmp_path_factory.mktemp("alone") / name
        with torch.random.fork_rng():
            torch.manual_seed(0)
            save_checkpoint(build_training_model(fields), folder, max_shard_bytes=MAX_SHARD_BYTES)
        saved[name] = contents(folder)
    return saved


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(
    "case", ["replicated", "replicated and compiled", "layers compiled", "sharded", "sharded and compiled"]
)
def test_the_bytes_are_those_of_one_process(case: str, folder: Path, expected: dict[str, dict[str, bytes]]) -> None:
    assert contents(folder / case) == expected["mixture"]


@pytest.mark.parametrize("case", ["tied and sharded", "tied and tensor parallel"])
def test_tied_and_tensor_parallel(case: str, folder: Path, expected: dict[str, dict[str, bytes]]) -> None:
    assert contents(folder / case) == expected["tied"]


def test_a_rank_holds_one_file_and_one_slice(results: list[dict[str, Any]], folder: Path) -> None:
    largest_tensor = max(tensor.nbytes for tensor in load_training_model(folder / "sharded").parameters())
    assert largest_tensor > SLICE_BYTES
    for result in results:
        assert 0 < result["held"] <= MAX_SHARD_BYTES
        assert result["largest"] <= SLICE_BYTES


def test_files_are_spread_over_the_ranks(results: list[dict[str, Any]], expected: dict[str, dict[str, bytes]]) -> None:
    files = {name: sum(file.endswith(".safetensors") for file in saved) for name, saved in expected.items()}
    assert min(files.values()) >= RANKS
    saves = [files["mixture"]] * 5 + [files["tied"]] * 2 + [RANKS]  # the last: the files at which the disk is full
    assert [result["files"] for result in results] == [
        sum(len(range(rank, count, RANKS)) for count in saves) for rank in range(RANKS)
    ]


def test_an_error_of_one_rank_is_an_error_of_all(results: list[dict[str, Any]], folder: Path) -> None:
    errors = [result["errors"] for result in results]
    on_meta = "model = 'config': has no values to save: model.embed_tokens.weight is on the meta device"
    assert errors[0].pop("meta on rank 1") == f"rank 1: {on_meta}"
    assert errors[1].pop("meta on rank 1") == on_meta
    differ = f"folder: ranks 0 and 1 differ: {folder}/folder of rank 0 and {folder}/folder of rank 1"
    assert [errors[rank].pop(f"folder of rank {rank}") for rank in range(RANKS)] == [differ] * 2
    models = [build_training_model(fields, device="meta") for fields in (TIED, MIXTURE)]
    sizes = [sum(parameter.nbytes for parameter in model.parameters()) for model in models]
    sizes[1] += sum(buffer.nbytes for buffer in models[1].buffers())
    counts = [len(model.state_dict()) for model in models]
    differ = f"{counts[0] - 1} tensors of {sizes[0]} bytes and {counts[1]} tensors of {sizes[1]} bytes"
    assert [error.pop("another model on rank 1") for error in errors] == [f"model: ranks 0 and 1 differ: {differ}"] * 2
    not_empty = f"{folder / 'full'}: is not empty; give a new folder"
    assert [error.pop("full") for error in errors] == [not_empty] * 2
    full = errors[1].pop("disk of rank 1")
    assert full.startswith(f"{folder}/disk of rank 1/model-00002-of-")
    assert full.endswith("No space left on device")
    assert errors[0].pop("disk of rank 1") == f"rank 1: {full}"
    assert errors == [{}, {}]


def test_nothing_is_left_of_what_failed(folder: Path, results: list[dict[str, Any]]) -> None:
    saved = {"replicated", "replicated and compiled", "layers compiled", "sharded", "sharded and compiled"}
    saved |= {"tied and sharded", "tied and tensor parallel", "full"}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == saved
    assert [path.name for path in (folder / "full").iterdir()] == ["notes.txt"]
