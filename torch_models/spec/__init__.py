"""Model specs: frozen data with every size that parameters, FLOPs and bytes depend on.

Torch-free. A family (families/) reads a config.json into a `ModelSpec`. Modules are built from it, and closed-form
formulas read it instead of the modules. All sizes are element counts. A spec's constructor checks the rules that join
several fields; it raises a `ConfigError` that names the field as Hugging Face's config.json does. Ranges of single
fields are checked when a config is read.
"""

from torch_models.spec.attention import (
    MAX_FLASH_CHANNELS,
    AttentionSpec,
    GroupedQueryAttentionSpec,
    IndexerSpec,
    MultiHeadLatentAttentionSpec,
    RotarySpec,
    TemperatureSpec,
)
from torch_models.spec.base import (
    Spec,
    check_width,
)
from torch_models.spec.choices import (
    Activation,
    Kernels,
    ModelRecompute,
    NormPlacement,
    NormType,
    Recompute,
    check_kernels,
)
from torch_models.spec.feed_forward import (
    ClampedMLPSpec,
    FeedForwardSpec,
    GatedMLPSpec,
    MixtureOfExpertsSpec,
    MLPSpec,
    RouterSpec,
)
from torch_models.spec.layer import (
    LayerRun,
    LayerSpec,
    runs_of,
)
from torch_models.spec.model import (
    ModelSpec,
)
from torch_models.spec.ranges import (
    DEFAULT_INITIALIZER_RANGE,
    MAX_EXPERTS,
    MAX_HEADS,
    MAX_LAYERS,
    MAX_SEQUENCE_LENGTH,
    MAX_VOCABULARY,
    MAX_WIDTH,
    Epsilon,
    Experts,
    Heads,
    InitializerRange,
    Layers,
    Positive,
    SequenceLength,
    Share,
    Theta,
    Vocabulary,
    Width,
)

__all__ = [
    "DEFAULT_INITIALIZER_RANGE",
    "MAX_EXPERTS",
    "MAX_FLASH_CHANNELS",
    "MAX_HEADS",
    "MAX_LAYERS",
    "MAX_SEQUENCE_LENGTH",
    "MAX_VOCABULARY",
    "MAX_WIDTH",
    "Activation",
    "AttentionSpec",
    "ClampedMLPSpec",
    "Epsilon",
    "Experts",
    "FeedForwardSpec",
    "GatedMLPSpec",
    "GroupedQueryAttentionSpec",
    "Heads",
    "IndexerSpec",
    "InitializerRange",
    "Kernels",
    "LayerRun",
    "LayerSpec",
    "Layers",
    "MLPSpec",
    "MixtureOfExpertsSpec",
    "ModelRecompute",
    "ModelSpec",
    "MultiHeadLatentAttentionSpec",
    "NormPlacement",
    "NormType",
    "Positive",
    "Recompute",
    "RotarySpec",
    "RouterSpec",
    "SequenceLength",
    "Share",
    "Spec",
    "TemperatureSpec",
    "Theta",
    "Vocabulary",
    "Width",
    "check_kernels",
    "check_width",
    "runs_of",
]
