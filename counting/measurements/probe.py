"""The measured modules: a model with one layer of each distinct kind, built once on the meta device."""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor, nn

from counting.setup import MicroBatch
from torch_models.builder import build_model_with_loss, build_mtp_layers
from torch_models.modules.layers import RotaryTables, rotary_tables
from torch_models.spec import Kernels, LayerSpec, ModelSpec
from torch_models.training.model import TrainingModel

# Of the 16-bit formats; float16 has the same bytes and FLOPs.
MEASURED_DTYPE = torch.bfloat16


class Probe(NamedTuple):
    """The modules, and how many layers of the model each one represents."""

    spec: ModelSpec
    groups: tuple[tuple[LayerSpec, int], ...]  # distinct layers, and the number of each
    model: TrainingModel  # with one layer of each and, if they are trained, the multi-token-prediction layers
    mtp_layers: nn.ModuleList  # all multi-token-prediction layers, those of `model` if it has them

    @property
    def layers(self) -> list[nn.Module]:
        """One decoder layer for each of `groups`."""
        return list(self.model.model.layers)[: len(self.groups)]

    def mtp_kinds(self) -> Iterator[tuple[nn.Module, LayerSpec, int]]:
        """One multi-token-prediction module of each kind, its spec, and the number of equal ones."""
        specs = self.spec.mtp_layers
        for spec in dict.fromkeys(specs):
            yield self.mtp_layers[specs.index(spec)], spec, specs.count(spec)

    def head_inputs(self, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """Hidden states (T, D) and labels (T,) of a micro-batch, which the head takes."""
        return self.stream(batch).flatten(0, 1), torch.empty(batch.tokens, dtype=torch.long, device="meta")

    def stream(self, batch: MicroBatch) -> Tensor:
        """Hidden states of a micro-batch, (B, S, D)."""
        dtype = self.model.lm_head.weight.dtype
        return torch.empty(*batch, self.spec.hidden_size, device="meta", dtype=dtype)

    def rotary(self, layer: LayerSpec, batch: MicroBatch) -> RotaryTables:
        """The rotary tables of `layer`, which the sequences share."""
        dtype = self.model.lm_head.weight.dtype
        return rotary_tables(layer.attention.rotary, batch.length, torch.device("meta"), dtype)


def build_probe(spec: ModelSpec, kernels: Kernels, dtype: torch.dtype = MEASURED_DTYPE, *, mtp: bool = True) -> Probe:
    """Build the modules of `spec`. The time depends on the number of distinct layers, not on the number of layers.

    With `mtp` the multi-token-prediction layers are trained.
    """
    groups = spec.layer_groups()
    runs = tuple(msgspec.structs.replace(run, count=1) for run in _first_of_each(spec))
    one_of_each = msgspec.structs.replace(spec, layer_runs=runs)
    model = build_model_with_loss(one_of_each, device="meta", dtype=dtype, kernels=kernels, mtp=mtp)
    if mtp:
        return Probe(spec, groups, model, nn.ModuleList(model.model.mtp_layers))
    return Probe(spec, groups, model, build_mtp_layers(spec, device="meta", dtype=dtype, kernels=kernels))


def _first_of_each(spec: ModelSpec) -> list[msgspec.Struct]:
    found: dict[LayerSpec, msgspec.Struct] = {}
    for run in spec.layer_runs:
        found.setdefault(run.layer, run)
    return list(found.values())
