"""One stage of a model that is trained in a pipeline.

The legend of dimension letters is in modules/layers.py.
"""

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from torch_models.modules.layers import RotaryTables
from torch_models.spec import Kernels
from torch_models.stages import Stage
from torch_models.training.loss import LossNormalizer
from torch_models.training.model import MTP_WEIGHT, TrainingModel


class NumberedLayers(nn.ModuleList):
    """A list of layers of which the first has another number than 0 in the names of parameters."""

    def __init__(self, layers: Iterable[nn.Module], first: int) -> None:
        super().__init__()
        for number, layer in enumerate(layers, first):
            self.add_module(str(number), layer)

    def __getitem__(self, index: int) -> nn.Module:  # type: ignore[override]
        """The layer at this place of the list, from 0."""
        return list(self)[index]


class StageModel(TrainingModel):
    """One stage of a `TrainingModel`: hidden states in and out; token ids in the first stage, the loss in the last.

    It has no embedding unless it is the first stage, and no final norm and head unless it is the last one, whose
    multi-token prediction has an embedding of its own. Parameters have the names that they have in the undivided model.
    """

    def __init__(
        self, stage: Stage, kernels: Kernels, *, mtp: bool, loss_chunk: int | None, mtp_weight: float = MTP_WEIGHT
    ) -> None:
        super().__init__(stage.spec, kernels, mtp=mtp and stage.is_last, loss_chunk=loss_chunk, mtp_weight=mtp_weight)
        self.stage = stage
        # The first stage and multi-token prediction in the last one have the same embedding, of which each is a copy.
        self.shares_embedding = mtp and stage.predicts_further and (stage.is_first or stage.is_last)
        self.model.layers = NumberedLayers(self.model.layers, stage.first_layer)
        # Of all micro-batches: torch's schedules would cut what they are given into micro-batches.
        self.tables: Sequence[RotaryTables] | None = None
        self.normalizer: LossNormalizer | None = None
        if not stage.is_first and not self.num_mtp_layers:
            self.model.embed_tokens, self.model.has_embedding = None, False  # type: ignore[assignment]
        if not stage.is_last:
            self.model.norm, self.model.has_norm = None, False  # type: ignore[assignment]
            self.lm_head = None  # type: ignore[assignment]

    def forward(  # type: ignore[override]
        self, x: Tensor, *, token_ids: Tensor | None = None, labels: Tensor | None = None
    ) -> Tensor:
        """Return the residual stream after the layers of this stage, (B, S, D), or in the last stage the loss.

        `x` has the token ids (B, S) in the first stage, else what the stage before returned. The last stage needs the
        `labels`, and the `token_ids` for multi-token prediction; the other stages ignore them.
        """
        tables = self.tables
        assert tables is not None, "the rotary tables are set by build_pipeline"
        if not self.stage.is_last:
            residual_BSD = None if self.stage.is_first else x
            out: Tensor = self.model(x, tables, residual_BSD=residual_BSD)
            return out
        assert labels is not None and (token_ids is not None or not self.num_mtp_layers)
        ids = labels if token_ids is None else token_ids  # they are not embedded without multi-token prediction
        return super().forward(ids, labels, normalizer=self.normalizer, tables=tables, residual_BSD=x)
