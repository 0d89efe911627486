"""A built model as `counting.measurements.step` runs it: in training mode, with this project's loss on its logits."""

import contextlib
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from counting.measurements.dispatch import Owner, owners_in
from counting.setup import Setup
from counting.via_transformers.discover import Discovered
from counting.via_transformers.run import Recorded, inputs_of, only_first_layers
from counting.via_transformers.step.layers import LayersToRun, LayerToRun
from torch_models.errors import UserError
from torch_models.modules.recompute import run
from torch_models.training.loss import mean_loss, summed_cross_entropy, summed_in_chunks, wide

CHUNKED_HEAD = "lm_head"  # the component of a head's products, whoever runs them


class BuiltToRun:
    """A model that transformers built, ready for a step; a `ToRun` of `counting.measurements.step`.

    Use it inside `ready`. `trained` are the parameters that a backward pass gave a gradient.
    """

    def __init__(self, found: Discovered, recorded: Recorded, layers: LayersToRun, setup: Setup) -> None:
        self.module = found.model
        self.kinds: Sequence[tuple[str, int]] = [(each.kind, each.number) for each in layers.layers]
        self.trained: set[int] = set()
        self._found, self._recorded, self._layers = found, recorded, layers
        self._inputs = inputs_of(recorded.way, setup.micro_batch)
        self._labels = torch.zeros(*setup.micro_batch, dtype=torch.long, device="meta")
        self.inputs: Sequence[Tensor] = [*self._inputs.values(), self._labels]
        self._chunk = setup.loss_chunk
        self._head: _ChunkedHead | None = None
        self._outputs: dict[int, Any] = {}
        self._after_layers: Callable[[], None] | None = None  # to be called when the next module is

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Context in which the model trains: one layer of each kind, recomputed as the setup says."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(only_first_layers(self._found, self._layers.first_alike, self._output_of))
            for index, layer in zip(dict.fromkeys(self._layers.first_alike), self._layers.layers, strict=True):
                stack.callback(layer.layer.register_forward_hook(self._note_form(index)).remove)
                if layer.recompute in ("full", "per_op"):
                    stack.enter_context(_forward_of(layer.layer, _recomputed(layer)))
            if self._chunk is not None:
                head = self._head_of_logits()
                self._head = _ChunkedHead(head)
                stack.enter_context(_forward_of(head, lambda hidden: hidden))
            self.module.train()
            stack.callback(self.module.eval)
            yield

    def loss(self) -> Tensor:
        """The mean cross-entropy of one micro-batch, from logits in fp32."""
        out = _summed(self._logits(), self._labels) if self._head is None else self._loss_in_chunks(self._head)
        return mean_loss(out, self._labels, None, 0)

    def cut_at_layers(self, cut: Callable[[], None]) -> list[RemovableHandle]:
        """Cut where a layer is called, and where the module after the last one is; and at the gradients of both."""

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            cut()
            stream: Tensor = args[0] if args else kwargs["hidden_states"]
            stream.register_hook(lambda gradient: cut())

        def after_last(module: nn.Module, args: Any, out: Any) -> None:
            stream: Tensor = out if isinstance(out, Tensor) else out[0]
            stream.register_hook(lambda gradient: cut())
            self._after_layers = cut

        def note(parameter: Tensor) -> None:
            self.trained.add(id(parameter))

        layers = [each.layer for each in self._layers.layers]
        inside = {module for layer in layers for module in layer.modules()}
        others = (module for module in self.module.modules() if module not in inside)
        return [
            *(layer.register_forward_pre_hook(before, with_kwargs=True) for layer in layers),
            layers[-1].register_forward_hook(after_last),
            *(module.register_forward_pre_hook(lambda module, args: self._end_layers()) for module in others),
            *(
                parameter.register_post_accumulate_grad_hook(note)
                for parameter in self.module.parameters()
                if parameter.requires_grad
            ),
        ]

    def owners(self) -> dict[nn.Module, Owner]:
        """The owners of all modules, those of a layer as often as the model has it.

        A module outside the layers whose products are elementwise work counts 0 times: rotary tables are made so.
        """
        owners = {
            module: owner if self._recorded.flops.get(module) else owner._replace(times=0)
            for module, owner in owners_in(self.module).items()
        }
        for layer in self._layers.layers:
            owners |= {module: owner._replace(times=layer.number) for module, owner in owners_in(layer.layer).items()}
        return owners if self._head is None else owners | {self._head: Owner(CHUNKED_HEAD, 1)}

    def _logits(self) -> Tensor:
        logits = _logits_of(self.module(**self._inputs, use_cache=False))
        self._end_layers()
        return logits

    def _loss_in_chunks(self, head: "_ChunkedHead") -> Tensor:
        out: Tensor = head(self._logits(), self._labels, self._chunk)
        return out

    def _end_layers(self) -> None:
        after, self._after_layers = self._after_layers, None
        if after is not None:
            after()

    def _note_form(self, index: int) -> Callable[..., None]:
        """A hook that notes what kind of value a layer returns, without keeping its tensors alive."""

        def note(module: nn.Module, args: Any, out: Any) -> None:
            plain = isinstance(out, Tensor) or type(out) not in (tuple, list)
            self._outputs[index] = None if plain else type(out)([None, *map(_without_owning, out[1:])])

        return note

    def _output_of(self, index: int) -> Any:
        """What a layer returned, with None for its residual stream and for tensors that are not alive any more."""
        out = self._outputs[index]
        return out if out is None else type(out)(x() if isinstance(x, weakref.ref) else x for x in out)

    def _head_of_logits(self) -> nn.Linear:
        """The head, if its products are the logits; raises `UserError` if the family changes them afterwards."""
        head = self.module.get_output_embeddings()  # type: ignore[operator]
        seen: list[Tensor] = []
        hook = head.register_forward_hook(lambda module, args, out: seen.append(out))
        try:
            with torch.no_grad():
                logits = self._logits()
        finally:
            hook.remove()
        if not (isinstance(head, nn.Linear) and len(seen) == 1 and seen[0] is logits):
            raise UserError("the head's products are not its logits, so that no loss_chunk cuts them: leave it out")
        return head


class _ChunkedHead(nn.Module):
    """Hidden states and labels give the summed loss, with the logits of at most so many tokens in memory at a time."""

    component = CHUNKED_HEAD

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.__dict__["of"] = head  # not a submodule

    def forward(self, hidden: Tensor, labels: Tensor, chunk: int | None) -> Tensor:
        """(B, S, D) and (B, S) -> a scalar."""
        head = self.__dict__["of"]
        return summed_in_chunks(_of_hidden, hidden.flatten(0, -2), labels.flatten(), chunk, head.weight, head.bias)


def _of_hidden(hidden_TD: Tensor, labels_T: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    return summed_cross_entropy(wide(F.linear(hidden_TD, weight_VD, bias_V)), labels_T)


def _summed(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, S, V) and (B, S) give the summed loss; only the logits in fp32 stay alive, as in the native families."""
    logits = wide(logits.flatten(0, -2))
    return summed_cross_entropy(logits, labels.flatten())


def _logits_of(out: Any) -> Tensor:
    """The logits in what a model returns."""
    if isinstance(out, Tensor):
        return out
    logits: Tensor = out.logits if hasattr(out, "logits") else out[0]
    return logits


def _without_owning(value: Any) -> Any:
    return weakref.ref(value) if isinstance(value, Tensor) else value


@contextlib.contextmanager
def _forward_of(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Context in which the module's `forward` is another function."""
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def _recomputed(layer: LayerToRun) -> Callable[..., Any]:
    """The layer's `forward`, of which backward keeps only the arguments or, with ``per_op``, the products too."""
    forward, kept = layer.layer.forward, None
    if layer.recompute == "per_op":
        routers = (module for module in layer.layer.modules() if module.component == "router")
        weights = (weight for module in routers for weight in module.parameters(recurse=False) if weight.dim() == 2)
        kept = tuple((weight.shape[1], weight.shape[0]) for weight in weights)

    def again(*args: Any, **kwargs: Any) -> Any:
        return run(forward, *args, recompute=True, keeps_products=kept, **kwargs)

    return again
