"""A part of a model with the arguments it was called with: what can be run again by itself, and measured."""

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


class Call(nn.Module):
    """A part of the model as it was called: tensors in, tensors out, everything else as it was."""

    component = "other"  # of what the part itself does not own

    def __init__(self, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.part = part
        self._leaves, self._tree = tree_flatten((args, kwargs))
        self._places = [place for place, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the part was given; of a layer the first is the residual stream."""
        return tuple(self._leaves[place] for place in self._places)

    def forward(self, *tensors: Tensor) -> Any:
        """The part with other `tensors` in the place of those it was given: one tensor, or a tuple of them."""
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self._tree)
        out = [leaf for leaf in tree_leaves(self.part(*args, **kwargs)) if isinstance(leaf, Tensor)]
        return out[0] if len(out) == 1 else tuple(out)


class LayerCall(nn.Module):
    """The same of a layer, as `counting.measurements.live_bytes` calls one: its input, and what all layers share."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x_BSD: Tensor, shared: tuple[Tensor, ...]) -> Tensor:
        """(B, S, D) gives (B, S, D)."""
        out = self.call(x_BSD, *shared)
        stream: Tensor = out if isinstance(out, Tensor) else out[0]
        return stream


class HandsOn(nn.Module):
    """Stands where a layer stood that an earlier one is like: gives back its input in the form of the other's output.

    `outputs` has what each layer returned that did run, by its number.
    """

    def __init__(self, layer: nn.Module, like: int, outputs: dict[int, Any]) -> None:
        super().__init__()
        self.__dict__["_stood_here"] = layer  # not as a part, so that nothing of it is counted
        self.__dict__["_output_of_like"] = lambda: outputs[like]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_stood_here"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The residual stream as it came, in the form of the other's output."""
        stream = args[0] if args else kwargs["hidden_states"]
        out = self.__dict__["_output_of_like"]()
        return (stream, *out[1:]) if isinstance(out, tuple) else stream
