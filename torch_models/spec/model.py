"""The spec of a whole model. Torch-free."""

from torch_models.spec.base import Spec
from torch_models.spec.choices import NormType
from torch_models.spec.layer import LayerRun, LayerSpec
from torch_models.spec.ranges import DEFAULT_INITIALIZER_RANGE


class ModelSpec(Spec, frozen=True, kw_only=True):
    """A decoder-only language model: embedding, layers, final norm, head.

    `mtp_layers` are the decoder layers of the multi-token-prediction modules (DeepSeek-V3, §2.2), which are not part of
    the main model. Each module joins the hidden state with the next token's embedding and runs one decoder layer; it
    uses the embedding and the head of the main model.
    """

    name: str
    model_type: str
    vocab_size: int
    hidden_size: int
    layer_runs: tuple[LayerRun, ...]  # in the model's order; `runs_of` makes them from single layers
    norm_eps: float
    tie_word_embeddings: bool
    sequence_length: int | None  # the training length in tokens, None if the config contains none
    sequence_length_source: str | None  # the config field that contains it
    mtp_layers: tuple[LayerSpec, ...] = ()
    norm_type: NormType = "rms_norm"  # of the final norm
    norm_unit_offset: bool = False
    embedding_scale: float = 1.0
    learned_positions: int | None = None  # rows of a learned table, of which one is added to each embedded token
    final_logit_softcap: float | None = None
    initializer_range: float = DEFAULT_INITIALIZER_RANGE  # the standard deviation of weights before training
    defaulted_fields: tuple[str, ...] = ()  # "field = value" for each field that took the family's default
    folder: str | None = None  # the folder of the config, if the config was given as one; it may have weights
    passed_over_fields: tuple[str, ...] = ()  # "field = value (reason)" for each field that has no part in the model
    ignored_fields: tuple[str, ...] = ()  # "field = value" for each field that the caller named as without influence
    config_json: str | None = None  # the config's fields with the defaults taken, to be saved; None if made by hand

    def __post_init__(self) -> None:
        assert self.layer_runs and all(run.layer.hidden_size == self.hidden_size for run in self.layer_runs)
        assert self.norm_type == "rms_norm" or not (self.norm_unit_offset or self.mtp_layers)
        assert self.learned_positions is None or not self.mtp_layers

    @property
    def num_layers(self) -> int:
        """Number of layers of the main model."""
        return sum(run.count for run in self.layer_runs)

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        """Every layer of the main model, in order, without joining equal ones."""
        return tuple(run.layer for run in self.layer_runs for _ in range(run.count))

    def layer_groups(self) -> tuple[tuple[LayerSpec, int], ...]:
        """The distinct layers, each with the number of times it occurs, in order of first appearance."""
        counts: dict[LayerSpec, int] = {}
        for run in self.layer_runs:
            counts[run.layer] = counts.get(run.layer, 0) + run.count
        return tuple(counts.items())
