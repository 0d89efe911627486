"""A few steps of training of a shrunken model, in one process or on a rank: their losses, gradients and weights.

`Way` says how a model is trained. `train(family, way)` trains it on the batches of one rank; `train_plain` trains the
plain module in one process on the batches of all ranks, as so many micro-batches. On two ranks the two are equal to the
bit: a sum of two gradients has one order, and a division by two rounds nothing.
"""

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from tests.shrunken import FAMILIES
from torch_models import build_training_model, initialize, loss_normalizer, set_recompute
from torch_models.spec import Kernels, ModelRecompute
from torch_models.training.batch import IGNORED
from torch_models.training.model import TrainingModel

STEPS = 3
SEED = 7  # of first values that `initialize` draws
SEQUENCES, LENGTH, VOCABULARY = 2, 20, 96  # longer than the windows, which are of 12 tokens

Batch = tuple[Tensor, Tensor]  # token ids and labels, (B, S) each


@dataclass(frozen=True)
class Way:
    """How a model is trained; the default is the plain module."""

    device: str = "cpu"
    kernels: Kernels = "fused"
    dtype: torch.dtype = torch.float32
    backend: str | None = None  # of torch.compile, with fullgraph
    autocast: bool = False  # to bf16
    recompute: ModelRecompute = "none"
    loss_chunk: int | None = None
    wrapper: Literal["ddp", "fsdp", "hsdp"] | None = None
    decoder_apart: bool = False  # fully_shard has a group of the whole decoder, beside those of its layers
    mixed_precision: bool = False  # bf16 weights and fp32 reduction, of fully_shard
    initialized: bool = False  # built on meta, allocated with to_empty, initialized with SEED
    continuous: bool = False  # every expert and key is chosen, none is clamped: rounding changes no gradient by much
    experts: int | None = None  # another number of experts than that of the shrunken family
    expert_width: int | None = None  # another intermediate size of the experts, where there are any
    micro_batches: int = 1  # of a step on each rank; gradients are synchronised after the last
    max_norm: float | None = None  # gradients are clipped to it; of models that a layout divides

    def in_one_process(self) -> "Way":
        """The same module, neither wrapped nor compiled nor computed twice."""
        return replace(self, wrapper=None, backend=None, recompute="none")


@dataclass(frozen=True)
class Trained:
    """What came of the training, undivided and the same on every rank."""

    losses: list[Tensor]  # of each step, over all ranks
    gradients: dict[str, Tensor]  # of the first step
    weights: dict[str, Tensor]  # the state dict after the last step


def fields_of(family: str, way: Way) -> dict[str, Any]:
    """The config of a family with two layers; GLM-4.5 predicts two tokens further, DeepSeek-V3 one."""
    fields = FAMILIES[family] | {"num_hidden_layers": 2}
    if family == "glm4_moe":
        fields["num_nextn_predict_layers"] = 2
    experts = next((name for name in ("num_local_experts", "num_experts", "n_routed_experts") if name in fields), None)
    if way.experts is not None:
        assert experts is not None
        fields[experts] = way.experts
    if way.expert_width is not None and experts is not None:
        fields["moe_intermediate_size" if "moe_intermediate_size" in fields else "intermediate_size"] = way.expert_width
    if way.continuous and experts is not None:
        fields["num_experts_per_tok"] = fields[experts]
        if "n_group" in fields:
            fields["topk_group"] = fields["n_group"]
        if "swiglu_limit" in fields:
            fields["swiglu_limit"] = 100.0
    if way.continuous and "index_topk" in fields:
        fields["index_topk"] = fields["max_position_embeddings"]
    return fields


def batch(step: int, rank: int, index: int = 0) -> Batch:
    """The micro-batch `index` of a rank; the higher the rank and the step, the fewer of its tokens have a label.

    All micro-batches of rank 0 but the first have none.
    """
    generator = torch.Generator().manual_seed(100 * step + 10 * rank + index)
    tokens = torch.randint(VOCABULARY, (SEQUENCES, LENGTH + 1), generator=generator)
    labels = tokens[:, 1:].clone()
    labels[0, : 3 + 4 * rank + step] = IGNORED  # a prompt
    labels[1, -1 - rank :] = IGNORED  # padding
    if rank == 0 and index > 0:
        labels.fill_(IGNORED)
    return tokens[:, :-1].contiguous(), labels


def train(family: str, way: Way) -> Trained:
    """Train on the batches of this rank, in the process group that there is."""
    model = first_model(family, way)
    if way.backend is not None:
        torch._dynamo.reset()
    module = _wrapped(model, way)
    if way.initialized:
        _allocate(model, way)
    rank = dist.get_rank() if dist.is_initialized() else 0
    return steps(model, module, _batches(way, [rank]), way)


@cache
def train_plain(family: str, way: Way, ranks: int) -> Trained:
    """Train the plain module in this process, each rank's batch as a micro-batch."""
    if way.initialized:
        model = build_training_model(fields_of(family, way), device=way.device, dtype=way.dtype, seed=SEED)
    else:
        model = first_model(family, way)
    module = _InBf16(model) if way.mixed_precision else model
    return steps(model, module, _batches(way, range(ranks)), way)


def _batches(way: Way, ranks: Iterable[int]) -> list[list[Batch]]:
    """The micro-batches of these ranks in each step."""
    places = [(rank, index) for rank in ranks for index in range(way.micro_batches)]
    return [[on_device(batch(step, *place), way) for place in places] for step in range(STEPS)]


def on_device(micro_batch: Batch, way: Way) -> Batch:
    token_ids, labels = (tensor.to(way.device) for tensor in micro_batch)
    return token_ids, labels


def first_model(family: str, way: Way) -> TrainingModel:
    """The model before it is wrapped, with the same weights on every rank; on meta if it is to be initialized."""
    model = build_training_model(
        fields_of(family, way),
        device="meta" if way.initialized else "cpu",
        dtype=way.dtype,
        kernels=way.kernels,
        loss_chunk=way.loss_chunk,
    )
    set_recompute(model, way.recompute)
    if way.initialized:
        return model
    _draw(model)
    return model.to(way.device)


def _draw(model: nn.Module) -> None:
    """Draw all weights and buffers so that every one of them shows in the loss."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in {**dict(model.named_parameters()), **dict(model.named_buffers())}.items():
        with torch.no_grad():
            tensor.normal_(1.0 if "norm" in name else 0.0, 0.15, generator=generator)


def _allocate(model: nn.Module, way: Way) -> None:
    """Allocate a model that is on meta, in memory full of NaN, and initialize it."""
    model.to_empty(device=way.device)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.fill_(float("nan"))
    initialize(model, seed=SEED)


def _wrapped(model: TrainingModel, way: Way) -> nn.Module:
    """Compile and wrap, as torch's manuals do: the whole model under DDP, and each layer under fully_shard."""
    sharded = way.wrapper in ("fsdp", "hsdp")
    if way.backend is not None:
        for part in model.model.layers if sharded else [model]:
            part.compile(fullgraph=True, backend=way.backend)
    if sharded:
        shard(model, way)
    elif way.wrapper == "ddp":
        return nn.parallel.DistributedDataParallel(model)
    return model


def shard(model: TrainingModel, way: Way) -> None:
    """Apply fully_shard to each layer, the embedding, the head (with the embedding if they are tied) and the root."""
    ranks = dist.get_world_size()
    shape, names = ((2, ranks // 2), ("replicate", "shard")) if way.wrapper == "hsdp" else ((ranks,), ("shard",))
    options: dict[str, Any] = {"mesh": init_device_mesh(way.device, shape, mesh_dim_names=names)}
    if way.mixed_precision:
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in model.model.layers:
        fully_shard(layer, **options)
    ends = [model.model if way.decoder_apart else model.model.embed_tokens, model.lm_head]
    for part in [ends] if model.spec.tie_word_embeddings else ends:
        fully_shard(part, **options)
    fully_shard(model, **options)


class _InBf16(nn.Module):
    """A model computed with its weights rounded to bf16, whose gradients are those of the fp32 weights."""

    def __init__(self, model: TrainingModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        rounded = {name: weight.bfloat16() for name, weight in self.model.named_parameters()}
        loss: Tensor = torch.func.functional_call(self.model, rounded, args, kwargs)
        return loss


def steps(model: TrainingModel, module: nn.Module, batches: list[list[Batch]], way: Way) -> Trained:
    """Take a step of SGD on each list of micro-batches; after the first, nothing may be compiled again."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses: list[Tensor] = []
    gradients: dict[str, Tensor] = {}
    for step, micro_batches in enumerate(batches):
        labels = [labels for _, labels in micro_batches]
        normalizer = loss_normalizer(labels, mtp_layers=model.num_mtp_layers)
        total = torch.zeros((), device=way.device)
        with contextlib.ExitStack() as stack:
            if way.backend is not None and step > 0:
                stack.enter_context(torch._dynamo.config.patch(error_on_recompile=True))
            for index, (token_ids, labels_BS) in enumerate(micro_batches):
                _synchronise(module, index == len(micro_batches) - 1)
                with torch.autocast(way.device, torch.bfloat16, enabled=way.autocast):
                    loss = module(token_ids, labels_BS, normalizer=normalizer)
                loss.backward()
                total += loss.detach()
        losses.append(_mean_over_ranks(total))
        if step == 0:
            gradients = {
                name: undivided(weight.grad) for name, weight in model.named_parameters() if weight.requires_grad
            }
        optimizer.step()
        optimizer.zero_grad()
    return Trained(losses, gradients, {name: undivided(tensor) for name, tensor in model.state_dict().items()})


def _synchronise(module: nn.Module, synchronised: bool) -> None:
    """Say whether the next backward adds the gradients of all ranks, or those of this rank alone."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(synchronised)
    elif isinstance(module, nn.parallel.DistributedDataParallel):
        module.require_backward_grad_sync = synchronised


def _mean_over_ranks(loss: Tensor) -> Tensor:
    if dist.is_initialized():
        dist.all_reduce(loss)
        loss /= dist.get_world_size()
    return loss


def undivided(tensor: Tensor | None) -> Tensor:
    """A copy of the whole tensor of which this rank may have a shard."""
    assert tensor is not None, "no gradient"
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().clone()
