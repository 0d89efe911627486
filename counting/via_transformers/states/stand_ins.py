"""The functions of transformers that carry a state along the sequence, replaced while a model is measured.

Each has the same name and arguments in all families. A replacement returns a tensor of the right shape and notes the
scan: its products are counted by formula, the rest by `elementwise`.
"""

import contextlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from counting.measurements.dispatch import ForwardHooks
from counting.scans import DeltaRuleScan, NamedScan, Scan, StateSpaceScan

ScanArguments = Mapping[str, Any]  # of a function's parameters, by name


class Replaced(NamedTuple):
    """A function that is replaced: its arguments along the sequence, and what it says of the scan."""

    lengths: Mapping[str, int]  # argument -> its dimension along the sequence
    scan: Callable[[ScanArguments], Scan]
    result: Callable[[Tensor], Any]  # its result, from a tensor like its first argument along the sequence
    tokens: int | None  # its work is a polynomial in blocks of so many tokens, None: in the scan's chunks
    counts_products: bool = False  # whether its own products are elementwise work: a sum over a state's channels


class NotedScan(NamedTuple):
    """One scan of a forward pass, and what its function was called with."""

    scan: Scan
    module: nn.Module | None  # the innermost module that ran it
    replaced: Replaced
    function: Callable[..., Any]
    arguments: ScanArguments

    @property
    def length(self) -> int:
        """Tokens of one sequence."""
        name, dimension = next(iter(self.replaced.lengths.items()))
        return int(self.arguments[name].shape[dimension])

    def run(self, length: int) -> None:
        """Run the function itself, over sequences of another length, on the meta device."""
        resized = dict(self.arguments)
        for name, dimension in self.replaced.lengths.items():
            if isinstance(tensor := resized[name], Tensor):
                shape = list(tensor.shape)
                shape[dimension] = length
                resized[name] = torch.empty(shape, dtype=tensor.dtype, device="meta")
        extra = resized.pop("kwargs", {})
        self.function(**resized, **extra)


def _state_space(arguments: ScanArguments) -> Scan:
    sequences, length, heads, head_size = arguments["hidden_states"].shape
    groups, state_size = arguments["B"].shape[2:]
    sizes = {"heads": heads, "groups": groups, "head_size": head_size, "state_size": state_size}
    return StateSpaceScan(sequences=sequences, length=length, chunk=arguments["chunk_size"], **sizes)


def _delta_rule(arguments: ScanArguments) -> Scan:
    sequences, length, heads, value_size = arguments["value"].shape
    return DeltaRuleScan(
        sequences=sequences,
        length=length,
        heads=heads,
        key_size=arguments["key"].shape[-1],
        value_size=value_size,
        chunk=arguments["chunk_size"],
        decays_by_channel=arguments["g"].dim() == 4,
    )


def _elementwise(algorithm: str) -> Callable[[ScanArguments], Scan]:
    scan = NamedScan(algorithm=algorithm)
    return lambda _: scan


def _itself(like: Tensor) -> Tensor:
    return like


def _and_no_state(like: Tensor) -> tuple[Tensor, None]:
    return like, None


_DELTA_RULE = Replaced(
    dict.fromkeys(("value", "key", "query", "g", "beta"), 1), _delta_rule, _and_no_state, tokens=None
)
_TOKENS = 16  # of a block, where work is linear in tokens; more than one, which code may take for generation
WINDOW = "short convolution"

REPLACED: Mapping[str, Replaced] = {
    "mamba2_chunk_scan": Replaced(
        dict.fromkeys(("hidden_states", "dt", "B", "C"), 1), _state_space, _itself, tokens=None
    ),
    "torch_chunk_gated_delta_rule": _DELTA_RULE,
    "chunk_kimi_delta_attention": _DELTA_RULE,
    "mamba_selective_scan": Replaced(
        dict.fromkeys(("hidden_states", "dt", "B", "C", "z"), 2),
        _elementwise("Mamba-1"),
        _itself,
        _TOKENS,
        counts_products=True,
    ),
    "_rnn_scan": Replaced(
        dict.fromkeys(("hidden_states", "recurrent_gate", "reset"), 1), _elementwise("RG-LRU"), _and_no_state, _TOKENS
    ),
    "rwkv_linear_attention": Replaced(
        dict.fromkeys(("key", "value"), 1), _elementwise("RWKV-4"), _and_no_state, _TOKENS
    ),
    "causal_conv1d_fn": Replaced({"hidden_states": 2}, _elementwise(WINDOW), _itself, _TOKENS, counts_products=True),
}
_CONVOLUTION = Replaced({"input": 2}, _elementwise(WINDOW), _itself, _TOKENS, counts_products=True)


@contextlib.contextmanager
def scans_stood_in(model: nn.Module) -> Iterator[list[NotedScan]]:
    """Context in which the scans of a model's modules are replaced; yields the list of those that run.

    Depthwise convolutions, one channel each, are replaced too. Only one thread at a time may be in it.
    """
    noted: list[NotedScan] = []
    running: list[nn.Module] = []
    with contextlib.ExitStack() as stack:
        for owner, name, function in _functions(model):
            stack.callback(setattr, owner, name, function)
            setattr(owner, name, _noting(function, REPLACED[name], noted, running))
        for module in model.modules():
            if isinstance(module, nn.Conv1d) and module.groups == module.in_channels:
                stack.callback(delattr, module, "forward")
                setattr(module, "forward", _noting_convolution(module, noted))  # noqa: B010 - only of this module
        stack.enter_context(ForwardHooks(running.append, lambda _: running.__delitem__(-1)))
        yield noted


def _functions(model: nn.Module) -> list[tuple[Any, str, Callable[..., Any]]]:
    """The functions to replace: the module or the class that has each, its name, and the function."""
    classes = {type(module) for module in model.modules()}
    files = {sys.modules[each.__module__] for each in classes if each.__module__.startswith("transformers.models.")}
    return [
        (owner, name, vars(owner)[name]) for owner in (*files, *classes) for name in REPLACED if name in vars(owner)
    ]


def _noting(
    function: Callable[..., Any], replaced: Replaced, noted: list[NotedScan], running: list[nn.Module]
) -> Callable[..., Any]:
    signature = inspect.signature(function)

    def stand_in(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = bound.arguments
        noted.append(
            NotedScan(replaced.scan(arguments), running[-1] if running else None, replaced, function, arguments)
        )
        return replaced.result(torch.empty_like(arguments[next(iter(replaced.lengths))]))

    return stand_in


def _noting_convolution(module: nn.Conv1d, noted: list[NotedScan]) -> Callable[[Tensor], Tensor]:
    function = type(module).forward.__get__(module)

    def stand_in(x_BCS: Tensor) -> Tensor:
        noted.append(NotedScan(_CONVOLUTION.scan({}), module, _CONVOLUTION, function, {"input": x_BCS}))
        padding, size = module.padding[0], module.kernel_size[0]
        assert isinstance(padding, int) and module.stride == module.dilation == (1,)
        return x_BCS.new_empty(*x_BCS.shape[:2], x_BCS.shape[2] + 2 * padding - size + 1)

    return stand_in
