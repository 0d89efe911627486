"""What the headers of a checkpoint folder say about the parameters of its config's model. Torch-free."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch_models.checkpoints.headers import Headers, read_headers
from torch_models.checkpoints.places import TensorEntry
from torch_models.checkpoints.quantised import unpacked
from torch_models.errors import CheckpointError, show_name
from torch_models.fields.file import read_config

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}  # by the names that configs use
WIDTHS = (2, 4, 8)  # bytes per number that a checkpoint may have, whatever the config says
BUFFER_BYTES = 4  # per number of a buffer, which is often fp32 where the weights are not
# Objects in a config that are no other model than that of the text.
OWN_PARTS = {"text_config", "quantization_config", "generation_config"}


class Contents(NamedTuple):
    """The tensors of a checkpoint folder, with names and shapes as in the model where they are quantised."""

    headers: Headers
    found: dict[str, TensorEntry]  # without scales
    is_quantised: bool
    dtype: str | None  # of the weights by the config
    not_compared: str | None  # why these tensors cannot be compared with those of the model

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return self.headers.source.parent

    def note(self, why_not_summed: str | None) -> str:
        """What of these tensors fits the config, where none contradicts it."""
        absent = set(self.headers.absent.values())
        files = {tensor.file for tensor in self.found.values()} | absent
        tensors = f"{len(self.found)} tensors in {len(files)} file{'' if len(files) == 1 else 's'}"
        shapes = "" if len(files) == len(absent) else ", shapes"
        if absent:
            tensors += f", {len(absent)} of them absent,"
        if why_not_summed is not None:
            return f"Checkpoint: {tensors} fit the config by names{shapes}; they are not counted: {why_not_summed}."
        total = f"the bytes that {self.headers.source.name} says" if absent else "number of parameters"
        return f"Checkpoint: {tensors} fit the config by names{shapes} and {total}."

    def with_prefix(self, prefix: str) -> "Contents":
        """The same contents with `prefix` before every name but those that begin with it."""

        def named(name: str) -> str:
            return name if name.startswith(prefix) else prefix + name

        headers = self.headers._replace(
            tensors={named(name): tensor for name, tensor in self.headers.tensors.items()},
            absent={named(name): shard for name, shard in self.headers.absent.items()},
        )
        return self._replace(headers=headers, found={named(name): tensor for name, tensor in self.found.items()})


def read_contents(folder: Path) -> Contents | None:
    """Return the contents of `folder`; None if it has neither a file of weights to read nor an index.

    Raises `CheckpointError` if a file is broken.
    """
    headers = read_headers(folder)
    if headers is None:
        return None
    _, fields = read_config(folder)
    named = {
        name: TensorEntry(tensor.file.name, tensor.dtype, tensor.shape) for name, tensor in headers.tensors.items()
    }
    named |= {name: TensorEntry(shard, None, None) for name, shard in headers.absent.items()}
    found, has_scales, packed = unpacked(named)
    return Contents(
        headers=headers,
        found=found,
        is_quantised=has_scales or fields.get("quantization_config") is not None,
        dtype=_dtype(fields),
        not_compared=_why_not_compared(fields, packed),
    )


def why_not_summed(contents: Contents, numbers: Mapping[str, int], buffers: Collection[str]) -> str | None:
    """Say why the numbers of all tensors are not known; None if they are.

    They are known if all files are there, or if the index's `total_size` is the number of bytes that the absent tensors
    have by `numbers`, which are the model's, in one dtype; a buffer, named in `buffers`, may have its own. Raises
    `CheckpointError` if `total_size` is another number.
    """
    headers = contents.headers
    if not headers.absent:
        return None
    if contents.is_quantised:
        return f"of a quantised checkpoint {headers.source.name} does not say how many there are"
    if headers.total_size is None:
        return f"{headers.source.name} has no metadata.total_size"
    absent_bytes = headers.total_size - sum(tensor.nbytes for tensor in headers.tensors.values())
    own = sum(numbers[name] for name in headers.absent if name in buffers)
    rest = sum(numbers[name] for name in headers.absent) - own
    widths = [DTYPE_BYTES[contents.dtype]] if contents.dtype in DTYPE_BYTES else []
    for width in (*widths, *WIDTHS):
        if absent_bytes in (rest * width + own * width, rest * width + own * BUFFER_BYTES):
            return None
    width, dtype = (widths or WIDTHS)[0], contents.dtype if widths else "bfloat16"
    raise CheckpointError(
        f"{headers.source}: metadata.total_size = {headers.total_size}: leaves {absent_bytes} bytes for the "
        f"{len(headers.absent)} tensors of absent files, as {show_name(next(iter(headers.absent)))}, but by the config "
        f"they have {rest + own} numbers, {(rest + own) * width} bytes in {dtype}"
    )


def _dtype(fields: Mapping[str, Any]) -> str | None:
    inner = fields.get("text_config")
    for part in (inner if isinstance(inner, dict) else {}, fields):
        for field in ("dtype", "torch_dtype"):
            if isinstance(part.get(field), str):
                return str(part[field]).removeprefix("torch.")
    return None


def _why_not_compared(fields: Mapping[str, Any], packed: tuple[str, ...]) -> str | None:
    others = [name for name, value in fields.items() if name.endswith("_config") and isinstance(value, dict)]
    if "text_config" in others and set(others) - OWN_PARTS:
        return f"the weights are those of several models ({', '.join(map(show_name, sorted(others)))})"
    if packed:
        return f"tensors are packed by quantisation ({len(packed)}, as {show_name(packed[0])})"
    return None
