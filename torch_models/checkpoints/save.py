"""Saves a model as a Hugging Face checkpoint folder (config.json and safetensors), from one process or from many.

Names and layout are those of the family's published checkpoints, which `places.py` reads. A model whose tensors are
divided over ranks is never whole on one of them: each file is written by one rank, which gathers the tensors of this
file alone.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from torch_models.builder import DTYPES, build_model_with_loss
from torch_models.checkpoints.files import require_safetensors
from torch_models.checkpoints.gather import allocate, divided_type, fill
from torch_models.checkpoints.new_folder import create_temporary, folder_to_create, remove, rename
from torch_models.checkpoints.places import HEAD, refuse_misfits
from torch_models.checkpoints.ranks import Ranks
from torch_models.checkpoints.shards import Shard, parts_to_store, shards_of
from torch_models.checkpoints.weight_files import INDEX_FILE
from torch_models.errors import ArgumentError, CheckpointError, show_name
from torch_models.fields.config import CAUSAL_LM, family
from torch_models.fields.file import CONFIG_FILE
from torch_models.modules.language_model import WRAPPERS, LanguageModel, unwrapped
from torch_models.spec import ModelSpec

MAX_SHARD_BYTES = 5_000_000_000  # of one file
# Fields of a config that are not true of what is saved: its numbers are plain, and there are no files of code.
NOT_SAVED = ("quantization_config", "compression_config", "auto_map")


class _Plan(NamedTuple):
    """What is to be written."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, Tensor]  # by native name, the head of a tied model left out
    shards: list[Shard]


def save_checkpoint(
    model: nn.Module, folder: str | os.PathLike[str], *, max_shard_bytes: int = MAX_SHARD_BYTES
) -> None:
    """Write `model` to `folder`, which must not exist or be empty, as transformers and `load_checkpoint` read it.

    `model` is one that this package builds or loads, also compiled, within DistributedDataParallel or after
    `fully_shard` and `parallelize_module`. The tensors are stored as they are, in one file or, if they have more than
    `max_shard_bytes`, in several with an index. A tied head is left out. Multi-token-prediction layers of a training
    model are stored after the main model's, as published, but without copies of embedding and head. config.json has the
    fields that the model was built from, those with defaults too, but no comments (fields that begin with an
    underscore).

    In a process group every rank calls this function, with the same folder on a file system that all share. Files are
    written by the ranks in turn; in addition to the model, a rank holds the tensors of one file. The folder gets its
    name when all is written; after an error or an interrupt there is none.

    Raises `UserError` (a `ValueError`), on every rank, before anything is written: `ArgumentError` for a model that is
    not of this package, has no values or no config, `CheckpointError` for the folder and for tensors that are not
    those of the config.
    """
    ranks = Ranks()
    plan = ranks.agreed(lambda: _plan(model, folder, max_shard_bytes))
    ranks.require_same("folder", str(plan.folder))
    ranks.require_same("max_shard_bytes", str(max_shard_bytes))
    stored = sum(part.nbytes for shard in plan.shards for part in shard.parts)
    ranks.require_same("model", f"{len(plan.tensors)} tensors of {stored} bytes")
    temporary = Path(ranks.from_first(lambda: str(create_temporary(plan.folder))))
    try:
        ranks.agreed(lambda: _check_shared(temporary))
        for first in range(0, len(plan.shards), ranks.count):
            _write_shards(ranks, temporary, plan, plan.shards[first : first + ranks.count])
        ranks.from_first(lambda: _finish(temporary, plan))
    finally:
        if ranks.rank == 0:
            remove(temporary)


def _plan(model: nn.Module, folder: str | os.PathLike[str], max_shard_bytes: int) -> _Plan:
    """Check all that can be checked before anything is written, and say what is to be written."""
    if not isinstance(max_shard_bytes, int) or isinstance(max_shard_bytes, bool) or max_shard_bytes < 1:
        raise ArgumentError("max_shard_bytes", max_shard_bytes, "must be a number of bytes, at least 1")
    own = _unwrapped(model)
    spec = own.spec
    path = folder_to_create(folder)
    require_safetensors(path, "writing")
    state = {_plain(name): tensor for name, tensor in own.state_dict().items()}
    _check_tensors(spec, state, mtp=bool(own.model.mtp_layers))
    config = _config(spec, functools.reduce(torch.promote_types, {tensor.dtype for tensor in own.parameters()}))
    _check_tied(own)
    tensors = {name: tensor for name, tensor in state.items() if not (spec.tie_word_embeddings and name == HEAD)}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    widths = {name: tensor.itemsize for name, tensor in tensors.items()}
    return _Plan(path, config, tensors, shards_of(parts_to_store(shapes, widths, spec.model_type), max_shard_bytes))


def _unwrapped(model: nn.Module) -> LanguageModel:
    """Return the model within its wrappers."""
    inner = unwrapped(model) if isinstance(model, nn.Module) else None
    if inner is None:
        raise ArgumentError("model", type(model).__name__, "must be a model of torch_models, such as build returns")
    return inner


def _plain(name: str) -> str:
    """Return the name of a tensor without the parts that torch.compile of a single layer puts into it."""
    return ".".join(part for part in name.split(".") if part != WRAPPERS[0])


def _check_tensors(spec: ModelSpec, state: Mapping[str, Tensor], *, mtp: bool) -> None:
    """Raise `UserError` unless these are the tensors of a model of `spec`, with values of a dtype that is read."""
    expected = build_model_with_loss(spec, device="meta", mtp=mtp).state_dict()
    refuse_misfits(
        f"the model {show_name(spec.name)}",
        {
            "misshapen": list(_misshapen(state, expected)),
            "missing": [name for name in expected if name not in state],
            "surplus": [name for name in state if name not in expected],
        },
    )
    for name, tensor in state.items():
        if tensor.device.type == "meta":
            raise ArgumentError("model", spec.name, f"has no values to save: {name} is on the meta device")
        if tensor.dtype not in DTYPES:
            rule = f"{name} is {tensor.dtype}, and only {', '.join(map(str, DTYPES))} are saved"
            raise ArgumentError("model", spec.name, rule)
        divided = divided_type()
        if divided is not None and isinstance(tensor, divided) and not dist.is_initialized():
            raise ArgumentError("model", spec.name, f"{name} is divided over ranks whose process group is gone")


def _check_tied(model: LanguageModel) -> None:
    """Raise `ArgumentError` if a head that is left out as a copy of the embedding is none."""
    first, second = model.model.embed_tokens.weight, model.lm_head.weight
    divided = divided_type()
    # Of a weight that is divided, a rank does not have what it would have to compare.
    compared = divided is None or (not isinstance(first, divided) and not isinstance(second, divided))
    if model.spec.tie_word_embeddings and second is not first and compared and not torch.equal(first, second):
        rule = "its head differs from its embedding, but the config ties them; set tie_word_embeddings to false"
        raise ArgumentError("model", model.spec.name, rule)


def _misshapen(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Iterator[str]:
    for name, tensor in state.items():
        if name in expected and tensor.shape != expected[name].shape:
            yield f"{name} has shape {tuple(tensor.shape)}, must be {tuple(expected[name].shape)}"


def _config(spec: ModelSpec, dtype: torch.dtype) -> dict[str, Any]:
    """Return the fields of the config to save, with the dtype of the weights and the class that reads them.

    The dtype is the one that holds the values of all parameters.
    """
    if spec.config_json is None:
        rule = "its spec was made by hand, so that there is no config to save; build the model from a config"
        raise ArgumentError("model", spec.name, rule)
    fields = {name: value for name, value in json.loads(spec.config_json).items() if name not in NOT_SAVED}
    fields["torch_dtype"] = str(dtype).removeprefix("torch.")
    if fields.get("initializer_range", 0) is None:  # read as the default, which transformers does not do
        fields["initializer_range"] = spec.initializer_range
    if not fields.get("architectures"):
        fields["architectures"] = [_architecture(spec.model_type)]
    return cast(dict[str, Any], fields)


def _architecture(model_type: str) -> str:
    """Return the class of a family in transformers; a family with the spec of another one has its class."""
    own = family(model_type).Config.architecture
    if own is not None:
        return own
    name = family(model_type).model_spec.__module__.rpartition(".")[2]
    return "".join(part.capitalize() for part in name.split("_")) + CAUSAL_LM


def _check_shared(temporary: Path) -> None:
    if not temporary.is_dir():
        raise CheckpointError(f"{temporary.parent}: is not a folder that all ranks share")


def _write_shards(ranks: Ranks, temporary: Path, plan: _Plan, shards: list[Shard]) -> None:
    """Write as many files as there are ranks at the same time, one on each rank."""
    own = shards[ranks.rank] if ranks.rank < len(shards) else None
    values = ranks.agreed(lambda: {} if own is None else allocate(own, plan.tensors))
    fill(values, shards, plan.tensors)
    ranks.agreed(lambda: None if own is None else _write(temporary / own.file, values, plan.folder))


def _write(file: Path, values: dict[str, Tensor], folder: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(values, file, metadata={"format": "pt"})
        _flush(file)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / file.name}: cannot be written: {error}") from None


def _flush(file: Path) -> None:
    """Wait until the file is on the disk: the folder must not get its name before its contents are there."""
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _finish(temporary: Path, plan: _Plan) -> str:
    """Write the index and the config, and give the folder its name."""
    documents = {CONFIG_FILE: plan.config}
    if len(plan.shards) > 1:
        parts = [(part, shard.file) for shard in plan.shards for part in shard.parts]
        documents[INDEX_FILE] = {
            "metadata": {"total_size": sum(part.nbytes for part, _ in parts)},
            "weight_map": {part.name: file for part, file in parts},
        }
    for name, document in documents.items():
        try:
            (temporary / name).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")
            _flush(temporary / name)
        except OSError as error:
            raise CheckpointError(f"{plan.folder / name}: cannot be written: {error.strerror}") from None
    rename(temporary, plan.folder)
    return str(plan.folder)
