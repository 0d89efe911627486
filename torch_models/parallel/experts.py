"""Expert parallelism: each rank of ep has some of the experts, and rows travel to their expert and back.

Rows are sorted by expert, so those of one rank's experts stand together and one all-to-all sends them. The number of
rows of each expert is sent first. Received rows stand by sender and then by expert; they are sorted by expert for the
grouped products, and put back in the order in which they came before they return (Lepikhin et al. 2020, arXiv
2006.16668, §3.2, without its capacity: no row is dropped).
The legend of dimension letters is in modules/layers.py; N is the number of rows that a rank sends, M that it receives.
"""

from typing import NamedTuple

import torch
import torch.distributed._functional_collectives as collectives
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor.parallel import parallelize_module

from torch_models.layout import Layout
from torch_models.modules.moe import RoutedExperts, experts_of
from torch_models.parallel.parameters import ROWS, LocalParameters
from torch_models.training.model import TrainingModel


def divide_experts(model: TrainingModel, layout: Layout, mesh: DeviceMesh) -> None:
    """Divide the experts of every layer over the ranks of `mesh`, those of ep."""
    for layer in model.model.layers:
        experts = experts_of(layer)
        if experts is not None:
            parts = {name: ROWS for name, _ in experts.named_parameters(recurse=False)}
            parallelize_module(experts, mesh, LocalParameters(parts), src_data_rank=None)
            experts.exchange = Exchange(mesh, layout.expert_imbalance)


class Splits(NamedTuple):
    """How many rows go to each rank, and come from each."""

    sent: list[int]
    received: list[int]


class Exchange:
    """Runs the transform of a stack of experts on the ranks that have them."""

    def __init__(self, mesh: DeviceMesh, imbalance: float) -> None:
        self.mesh = mesh
        self.imbalance = imbalance  # rows received on the meta device, relative to those sent

    def __call__(self, experts: RoutedExperts, rows_ND: Tensor, ends_E: Tensor) -> Tensor:
        """Return what each row's expert makes of it, (N, D) -> (N, D); rows are sorted by expert.

        `ends_E` is the end of each expert's rows, of all E experts.
        """
        ranks, device = self.mesh.size(), rows_ND.device
        own = experts.num_experts // ranks
        sent_E = ends_E.diff(prepend=ends_E.new_zeros(1)).to(torch.int64)
        received_E = _arrived(collectives.all_to_all_single(sent_E, None, None, self.mesh))  # by sender, own expert
        splits = self._splits(rows_ND, sent_E, received_E)
        received_MD = _arrived(collectives.all_to_all_single(rows_ND, splits.received, splits.sent, self.mesh))
        del rows_ND
        expert_of_own = torch.arange(own, device=device).repeat(ranks)
        total = sum(splits.received)
        experts_M, order_M = expert_of_own.repeat_interleave(received_E, output_size=total).sort(stable=True)
        ends = received_E.view(ranks, own).sum(0).cumsum(0).to(torch.int32)
        sorted_MD = received_MD.index_select(0, order_M)
        del received_MD, expert_of_own
        out_MD = experts.transform(sorted_MD, experts_M, ends)
        del sorted_MD, experts_M, ends
        came_MD = torch.zeros_like(out_MD).scatter_(0, order_M.unsqueeze(1).expand_as(out_MD), out_MD)
        del out_MD, order_M
        return _arrived(collectives.all_to_all_single(came_MD, splits.sent, splits.received, self.mesh))

    def _splits(self, rows_ND: Tensor, sent_E: Tensor, received_E: Tensor) -> Splits:
        """Read the counts; on the meta device, which has none, return those of balanced routing, or of `imbalance`."""
        ranks = self.mesh.size()
        if rows_ND.is_meta:
            rows = len(rows_ND)
            return Splits(_evenly(rows, ranks), _evenly(round(self.imbalance * rows), ranks))
        both = torch.stack((sent_E, received_E)).view(2, ranks, -1).sum(2)
        sent, received = both.tolist()
        return Splits(sent, received)


def _evenly(rows: int, ranks: int) -> list[int]:
    """`rows` in parts that differ by one at most."""
    return [rows * (rank + 1) // ranks - rows * rank // ranks for rank in range(ranks)]


def _arrived(x: Tensor) -> Tensor:
    """Wait for the result of a collective."""
    return x.wait() if isinstance(x, collectives.AsyncCollectiveTensor) else x
