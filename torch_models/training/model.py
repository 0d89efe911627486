"""The model to train: token ids and labels in, the loss out, with multi-token prediction.

    model = build_training_model(config)
    loss = model(token_ids, labels)
    loss.backward()

All of a training step's forward pass is in `forward`, so that wrappers that act on a module's call see all of it:
`torch.compile`, DDP, `fully_shard`. The legend of dimension letters is in layers.py.
"""

from collections.abc import Sequence

from torch import Tensor

from torch_models.errors import ArgumentError
from torch_models.modules.language_model import LanguageModel
from torch_models.modules.layers import RotaryTables
from torch_models.spec import Kernels, ModelSpec
from torch_models.training.batch import IGNORED, check_shapes
from torch_models.training.loss import LossHead, LossNormalizer, mean_loss, one_further

MTP_WEIGHT = 0.3  # DeepSeek-V3's weight for its first 10 trillion tokens (arXiv 2412.19437, §4.2)


class TrainingModel(LanguageModel):
    """The main model and its multi-token-prediction layers, whose `forward` returns the loss.

    The multi-token-prediction layers are the last of `model.layers`, as in Hugging Face's checkpoints.
    """

    lm_head: LossHead

    def __init__(
        self, spec: ModelSpec, kernels: Kernels, *, mtp: bool, loss_chunk: int | None, mtp_weight: float
    ) -> None:
        mtp_layers = spec.mtp_layers if mtp else ()
        super().__init__(spec, kernels, LossHead(spec, loss_chunk), mtp_layers)
        self.mtp_weight = mtp_weight
        self.num_mtp_layers = len(mtp_layers)

    def forward(
        self,
        token_ids_BS: Tensor,
        labels_BS: Tensor,
        *,
        normalizer: LossNormalizer | None = None,
        tables: Sequence[RotaryTables] | None = None,
        further: Sequence[tuple[Tensor, Tensor]] | None = None,
        residual_BSD: Tensor | None = None,
    ) -> Tensor:
        """Return the mean cross-entropy over the scored positions, in nats, as a scalar in fp32.

        `labels_BS` has the next token of each position: it is shifted already, unlike transformers' labels. A position
        with the label -100 is not scored; if none is scored, the loss is 0. The mean of the losses of the
        multi-token-prediction layers is added with weight `mtp_weight`. Layer k, counted from 1, predicts the token
        that is k positions after the label, from the hidden state of depth k - 1 and the embedding of the token k
        positions further (DeepSeek-V3, arXiv 2412.19437, eq. 21-25). As in Megatron-LM, every depth runs over all S
        positions, of which the last k are not scored. Each depth is divided by its number of scored positions; eq. 24
        divides by that of the main model.

        With `normalizer`, the sums are divided by the tokens of a whole step; see `loss_normalizer`. `tables` is the
        result of `model.rotary_tables`, for reuse over many steps. `further` are the token ids and labels of each
        multi-token-prediction layer, where ranks divide the positions (`parallel.context.batch_of_rank`); else they
        are made here. `residual_BSD` is the residual stream before the first layer, in place of the embedded tokens, as
        in the last stage of a pipeline. Raises `ArgumentError` for labels of another shape or dtype than (B, S) in
        int64, and for a normalizer or `further` of fewer prediction depths.
        """
        check_shapes(token_ids_BS, labels_BS)
        self.check_normalizer(normalizer)
        self.check_further(further)
        if tables is None:
            tables = self.model.rotary_tables(token_ids_BS)
        hidden_BSD = self.model(token_ids_BS, tables, residual_BSD=residual_BSD)
        loss = self._loss(hidden_BSD, labels_BS, normalizer, 0)
        for depth in range(1, 1 + self.num_mtp_layers):
            # No position is scored that attends to the last one.
            token_ids_BS = one_further(token_ids_BS, 0) if further is None else further[depth - 1][0]
            hidden_BSD = self.model(token_ids_BS, tables, depth=depth, hidden_BSD=hidden_BSD)
            labels_BS = one_further(labels_BS, IGNORED) if further is None else further[depth - 1][1]
            of_depth = self._loss(hidden_BSD, labels_BS, normalizer, depth)
            loss = loss + self.mtp_weight / self.num_mtp_layers * of_depth
        return loss

    def check_further(self, further: Sequence[tuple[Tensor, Tensor]] | None) -> None:
        """Raise `ArgumentError` for inputs of fewer prediction depths than this model has, or none where needed."""
        if further is None and self.num_mtp_layers and self.model.context_ranks > 1:
            rule = "is needed where ranks divide the positions: give that of batch_of_rank"
            raise ArgumentError("further", None, rule)
        if further is not None and len(further) < self.num_mtp_layers:
            rule = f"call batch_of_rank with mtp_layers={self.num_mtp_layers}, the number of this model"
            raise ArgumentError("further", f"for {len(further)} mtp_layers", rule)

    def check_normalizer(self, normalizer: LossNormalizer | None) -> None:
        """Raise `ArgumentError` for what is no normalizer of this model."""
        if normalizer is None:
            return
        if not isinstance(normalizer, LossNormalizer):
            raise ArgumentError("normalizer", type(normalizer).__name__, "must be the result of loss_normalizer")
        depths = len(normalizer.scored_tokens)
        if depths < 1 + self.num_mtp_layers:
            rule = f"call loss_normalizer with mtp_layers={self.num_mtp_layers}, the number of this model"
            raise ArgumentError("normalizer", f"for {depths - 1} mtp_layers", rule)

    def _loss(self, hidden_BSD: Tensor, labels_BS: Tensor, normalizer: LossNormalizer | None, depth: int) -> Tensor:
        summed: Tensor = self.lm_head(hidden_BSD, labels_BS)
        return mean_loss(summed, labels_BS, normalizer, depth)
