"""A decoder with its head, with Hugging Face's parameter names: `CausalLM` is the main model and returns logits.

The model that returns the loss, with multi-token prediction, is in training/model.py. The legend of dimension letters
is in layers.py; V is vocab_size.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch.nn.functional as F
from torch import Tensor, nn

from torch_models.first_values import set_initializer_range
from torch_models.modules.decoder import Decoder
from torch_models.modules.layers import Linear
from torch_models.spec import Kernels, LayerSpec, ModelSpec

WRAPPERS = ("_orig_mod", "module")  # what torch.compile and DistributedDataParallel call the module within


class LanguageModelHead(Linear):
    """Hidden states (…, D) -> logits (…, V), soft-capped if the spec has a cap."""

    component = "lm_head"
    quantised = ()

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__(spec.hidden_size, spec.vocab_size, bias=False)
        self.softcap = spec.final_logit_softcap

    def logits(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """(…, D) -> (…, V), with this weight."""
        logits: Tensor = F.linear(hidden, weight)
        return logits if self.softcap is None else (logits / self.softcap).tanh() * self.softcap

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, D) -> (…, V)."""
        return self.logits(hidden, self.weight)


class LanguageModel(nn.Module):
    """A decoder and its head; a subclass defines what `forward` returns.

    If the spec ties them, embedding and head have one parameter. It stays one when the model is moved, converted or
    allocated (`to`, `to_empty`) and when a state dict is loaded, also with `assign=True` and by a module around it. A
    state dict may leave out one of the two names, as Hugging Face's files do.
    """

    lm_head: LanguageModelHead

    def __init__(
        self, spec: ModelSpec, kernels: Kernels, head: LanguageModelHead, mtp_layers: Sequence[LayerSpec] = ()
    ) -> None:
        super().__init__()
        self.spec = spec
        self.model = Decoder(spec, kernels, mtp_layers)
        self.lm_head = head
        self.tie_weights()
        # Hooks also run where a module around this one loads its state dict, as the one of torch.compile does.
        self.register_load_state_dict_pre_hook(_name_both)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_tie_loaded)  # type: ignore[no-untyped-call]
        set_initializer_range(self, spec.initializer_range)

    def tie_weights(self) -> None:
        """Let the head have the embedding's parameter, if the spec ties them."""
        if self.spec.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.tie_weights()
        return self


def _name_both(model: LanguageModel, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Give the tied parameter both its names in a state dict that has one of them."""
    names = [f"{prefix}{name}" for name in ("model.embed_tokens.weight", "lm_head.weight")]
    for missing, there in (names, reversed(names)):
        if model.spec.tie_word_embeddings and there in state_dict:
            state_dict.setdefault(missing, state_dict[there])


def _tie_loaded(model: LanguageModel, keys: object) -> None:
    del keys
    model.tie_weights()


def unwrapped(module: nn.Module) -> LanguageModel | None:
    """Return the language model that `torch.compile` or DistributedDataParallel wraps, or None if it is another one."""
    inner: object = module
    while isinstance(inner, nn.Module) and not isinstance(inner, LanguageModel):
        inner = next((getattr(inner, name) for name in WRAPPERS if hasattr(inner, name)), None)
    return inner if isinstance(inner, LanguageModel) else None


class CausalLM(LanguageModel):
    """The main model; token ids (B, S) -> logits (B, S, V)."""

    def __init__(self, spec: ModelSpec, kernels: Kernels) -> None:
        super().__init__(spec, kernels, LanguageModelHead(spec))

    def forward(self, token_ids_BS: Tensor) -> Tensor:
        """(B, S) -> (B, S, V)."""
        logits: Tensor = self.lm_head(self.model(token_ids_BS))
        return logits
