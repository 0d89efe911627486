"""A part of a model with the arguments of its call, which can be run again separately and measured."""

from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten


class Call(nn.Module):
    """A part of the model and its recorded call: tensors in, tensors out; other arguments stay as recorded."""

    component = "other"  # for FLOPs that no module inside the part owns

    def __init__(self, part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self.part = part
        self._leaves, self._tree = tree_flatten((args, kwargs))
        self._places = [place for place, leaf in enumerate(self._leaves) if isinstance(leaf, Tensor)]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """The tensor arguments of the recorded call; for a layer the first is the residual stream."""
        return tuple(self._leaves[place] for place in self._places)

    def forward(self, *tensors: Tensor) -> Any:
        """Run the part with `tensors` instead of the recorded ones. Returns one tensor, or a tuple of tensors."""
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        args, kwargs = tree_unflatten(leaves, self._tree)
        out = [leaf for leaf in tree_leaves(self.part(*args, **kwargs)) if isinstance(leaf, Tensor)]
        return out[0] if len(out) == 1 else tuple(out)


class LayerCall(nn.Module):
    """A layer's call with the signature of `counting.measurements.live_bytes`: its input, and the shared inputs."""

    def __init__(self, call: Call) -> None:
        super().__init__()
        self.call = call

    def forward(self, x_BSD: Tensor, shared: tuple[Tensor, ...]) -> Tensor:
        """(B, S, D) gives (B, S, D)."""
        out = self.call(x_BSD, *shared)
        stream: Tensor = out if isinstance(out, Tensor) else out[0]
        return stream


class HandsOn(nn.Module):
    """Replaces a layer that is equal to an earlier one: returns its input, in the form of the earlier layer's output.

    `outputs` maps the number of each layer that ran to its output; `like` is the number of the earlier layer.
    """

    def __init__(self, layer: nn.Module, like: int, outputs: dict[int, Any]) -> None:
        super().__init__()
        self.__dict__["_stood_here"] = layer  # not a submodule, so that it is not counted
        self.__dict__["_output_of_like"] = lambda: outputs[like]

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_stood_here"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The unchanged residual stream, in the form of the earlier layer's output."""
        stream = args[0] if args else kwargs["hidden_states"]
        out = self.__dict__["_output_of_like"]()
        return type(out)([stream, *out[1:]]) if type(out) in (tuple, list) else stream
