"""Decoder layers as torch's compiler runs them: a rule over the ops that ran without it. An estimate; torch-free.

Products, attention, collectives, sorts, scatters, ops on complex numbers and the copies of `fully_shard` stay as they
are. All other ops are
generated code, and a tensor that they make is in memory only

- if one of the former reads it, or an op outside the layer, or nothing that was run: it is a result of the layer;
- if it changes a tensor in place that was there before;
- if it is a sum of many numbers, and other ops than those that follow it at once read it;
- if the backward pass reads it, and something that it was made of is not kept. Outside of decoder layers all may be:
  the loss keeps logits in 16 bits instead of their logarithms in 32.

Else it is computed again where it is read, from tensors in memory. Tensors that are made of the same tensor, or one of
the other, are one kernel, if all that they are made of is there at the place of the first. So are the sums over rows
and over columns in the backward pass of a norm (`MixOrderReduction` of torch 2.13). A kernel reads the distinct tensors
that it does not make, and writes those that are in memory.

These are torch's choices in outline: `realize_hint` in torch/_inductor/graph.py, fusion in scheduler.py, and what is
kept for backward, by `min_cut_rematerialization_partition` in torch/_functorch/partitioners.py. Torch weighs sizes and
numbers of reads besides.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

from counting.measurements.work.records import RawOp, RawStretch, Touch, op_of, summarise, total, touched_bytes
from counting.work import Op

# Memory ops for which torch's compiler calls a kernel that it does not generate, or whose result is complete only when
# all of it is: what adds to places that indices choose. Those of fully_shard run outside of what is compiled.
NOT_GENERATED = frozenset(
    {
        *("all_gather_copy_in", "chunk_cat", "split_with_sizes_copy"),
        *("histc", "nonzero", "searchsorted", "sort", "topk"),
        *("index_add", "index_put", "scatter", "scatter_add", "scatter_reduce"),
    }
)
OUTSIDE = -1  # in place of the number of a layer: embedding, head and loss
SUM = 4  # a result with at most 1 / SUM of the bytes of what it is made of is a sum


class _Source(NamedTuple):
    """A tensor in memory, as it is read; `value` is None for one that was there before."""

    touch: Touch
    value: "_Value | None"
    in_parts: bool = False  # written part by part, of which `value` is the last one

    @property
    def place(self) -> int:
        """The place of the op that made it."""
        return -1 if self.value is None else self.value.place

    @property
    def key(self) -> object:
        """Equal for all reads of the same tensor."""
        return f"storage {self.touch.serial}" if self.value is None else self.value.place


class _Read(NamedTuple):
    place: int
    stretch: int
    layer: int
    run: int  # ops that follow each other without a kernel between them
    generated: bool


class _Value:
    """What an op has written to a tensor, until it is written again."""

    def __init__(self, touch: Touch, at: _Read, made_of: Sequence[_Source], *, is_result: bool) -> None:
        self.touch, self.at, self.made_of = touch, at, made_of
        self.is_result = is_result  # in memory in any case
        self.readers: list[_Read] = []
        self.overwritten: int | None = None  # the place
        self.in_memory = True
        self.sources: tuple[_Source, ...] = ()  # in memory, that it is made of

    @property
    def place(self) -> int:
        """The place of the op that made it."""
        return self.at.place

    @property
    def is_sum(self) -> bool:
        """Whether it has far fewer bytes than what it is made of."""
        return self.touch.bytes * SUM <= max((source.touch.bytes for source in self.made_of), default=0)

    def decide(self, alive_after: Collection[int]) -> None:
        """Decide whether it is in memory; it is decided already for all that it is made of."""
        found: dict[object, _Source] = {}
        for source in self.made_of:
            in_memory = [source] if source.value is None or source.value.in_memory else source.value.sources
            found.update(((each.key, each.touch.region), each) for each in in_memory)
        self.sources = tuple(found.values())
        self.in_memory = not self.at.generated or self.is_result or self._is_needed(alive_after)

    def _is_needed(self, alive_after: Collection[int]) -> bool:
        if not self.readers:
            return self.touch.serial in alive_after and self.overwritten is None
        if any(not read.generated or read.layer != self.at.layer for read in self.readers):
            return True
        if self.is_sum and any(read.run != self.at.run for read in self.readers):
            return True
        last = max(read.place for read in self.readers)
        if any(source.value and (source.value.overwritten or last) < last for source in self.sources):
            return True
        is_kept = self.at.layer == OUTSIDE or all(source.touch.serial in alive_after for source in self.sources)
        return not is_kept and any(read.stretch != self.at.stretch for read in self.readers)


class _Kernel:
    """Generated code at the place of the first tensor that it makes."""

    def __init__(self, first: _Value) -> None:
        self.place = first.place
        self._made: dict[_Value, None] = {}
        self._shared: set[object] = set()  # keys of what it reads and makes
        self.add(first)

    def takes(self, value: _Value) -> bool:
        """Whether it can make `value` too."""
        return any(source.key in self._shared for source in value.sources) and all(
            source.place < self.place or self._makes(source) for source in value.sources
        )

    def add(self, value: _Value) -> None:
        """Let it make `value` too."""
        self._made[value] = None
        self._shared.update(source.key for source in value.sources)
        self._shared.add(value.place)

    def _makes(self, source: _Source) -> bool:
        return source.value in self._made and not source.in_parts

    def op(self) -> Op:
        """The op that reads what it does not make, and writes what is in memory."""
        sources = [source for value in self._made for source in value.sources]
        return Op(
            kind="memory",
            name="generated",
            bytes_read=touched_bytes(source.touch for source in sources if not self._makes(source)),
            bytes_written=touched_bytes(value.touch for value in self._made),
        )


def summarise_compiled(stretches: Sequence[RawStretch], layers: Sequence[int]) -> list[tuple[Op, ...]]:
    """The ops of each stretch of a step, where layers are compiled, each by itself.

    `stretches` are in the order of execution, each with the number of its layer; what is outside of the decoder layers
    is one more. A stretch never has more bytes than without a compiler.
    """
    values = _values(stretches, layers)
    for stretch, made in zip(stretches, values, strict=True):
        for value in made:
            value.decide(stretch.alive_after)
    return [_of_layer(stretch, made) for stretch, made in zip(stretches, values, strict=True)]


def _of_layer(stretch: RawStretch, made: Sequence[_Value]) -> tuple[Op, ...]:
    kernels: list[_Kernel] = []
    for value in made:
        if value.at.generated and value.in_memory:
            kernel = next((each for each in kernels if each.takes(value)), None)
            if kernel is None:
                kernels.append(_Kernel(value))
            else:
                kernel.add(value)
    as_they_are = (op_of(raw) for raw in stretch.ops if raw.kind != "collective" and not _is_generated(raw))
    compiled, plain = total([*as_they_are, *(kernel.op() for kernel in kernels)]), summarise(stretch)
    return min(compiled, plain, key=_bytes)


def _bytes(ops: Iterable[Op]) -> int:
    return sum(op.calls * (op.bytes_read + op.bytes_written) for op in ops)


def _is_generated(raw: RawOp) -> bool:
    if raw.kind != "memory" or raw.is_complex:
        return False
    return raw.name.rstrip("_") not in NOT_GENERATED and not raw.name.startswith("_foreach")


def _values(stretches: Sequence[RawStretch], layers: Sequence[int]) -> list[list[_Value]]:
    """What the ops of each stretch write, in order, with all that reads it."""
    storages = _Storages()
    place = run = 0
    found: list[list[_Value]] = []
    for index, (stretch, layer) in enumerate(zip(stretches, layers, strict=True)):
        made: list[_Value] = []
        run += 1
        for raw in stretch.ops:
            generated = _is_generated(raw)
            place, run = place + 1, run + (not generated)
            at = _Read(place, index, layer, run, generated)
            sources = [storages.read(touch, at) for touch in raw.reads]
            made += [storages.write(touch, at, sources) for touch in raw.writes]
        found.append(made)
        storages.end_stretch(stretch.alive_after)
    return found


class _Storages:
    """The last value of each storage."""

    def __init__(self) -> None:
        self._values: dict[int, _Value] = {}
        self._partly: set[int] = set()  # storages that were written part by part
        self._before: Collection[int] = ()  # those that were there before the stretch

    def read(self, touch: Touch, at: _Read) -> _Source:
        """What is read; of a storage that was written part by part the last part stands for all."""
        value = self._values.get(touch.serial)
        if value is not None:
            value.readers.append(at)
        return _Source(touch, value, touch.serial in self._partly)

    def write(self, touch: Touch, at: _Read, made_of: Sequence[_Source]) -> _Value:
        """The new value of a storage, or of a part of it; parts are in memory."""
        before = self._values.get(touch.serial)
        if before is not None:
            before.overwritten = at.place
        if touch.bytes < touch.storage_bytes:
            self._partly.add(touch.serial)
            if before is not None:
                before.is_result = True
        is_result = touch.serial in self._partly or touch.serial in self._before or touch.serial < 0
        value = self._values[touch.serial] = _Value(touch, at, made_of, is_result=is_result)
        return value

    def end_stretch(self, alive: Collection[int]) -> None:
        """Note what is alive now: it is there before the next stretch."""
        self._before = alive
