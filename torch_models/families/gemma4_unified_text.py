"""The text model of Gemma-4 Unified, which reads images and sound without towers of their own: a dense Gemma-4."""

from typing import ClassVar

from torch_models.families import gemma4_text
from torch_models.families.gemma4_text import model_spec
from torch_models.spec import SequenceLength

__all__ = ["Config", "model_spec"]


class Config(gemma4_text.Config, frozen=True, kw_only=True):
    """Gemma-4's fields; this class has no experts, and no embeddings of layers."""

    architecture: ClassVar[str | None] = "Gemma4UnifiedForCausalLM"
    sliding_window: SequenceLength = 1024
    hidden_size_per_layer_input: int = 0
