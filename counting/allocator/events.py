"""The log of a step: what is allocated and freed, in the order in which the program asks for it. Torch-free.

A stream is a name: blocks freed on one stream serve that stream alone. Everything happens in the order of the program,
which is ahead of the device: a tensor is freed when its last reference goes, whether its kernels have run or not.
"""

import msgspec


class Allocate(msgspec.Struct, frozen=True, gc=False, tag=True):
    """A storage of `bytes` is made while `stream` is current. No other storage that is not freed yet has its `key`.

    0 bytes take no block; the key can be freed all the same.
    """

    key: int
    bytes: int
    stream: str
    name: str = ""  # of the tensor or operation, for the snapshot alone


class Free(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The last reference to a storage goes. A storage that is resized is freed, and allocated under another key."""

    key: int


class UsedBy(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`torch.Tensor.record_stream`: the storage, once freed, waits until `stream` has done what it is to do by then.

    When that is, the log does not say: the storage's block is free at the next `Synchronize`, an upper bound.
    """

    key: int
    stream: str


class Synchronize(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The program waits for the device: every stream has done its work."""


class EmptyCache(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`torch.cuda.empty_cache`: segments without a block in use go back to the driver."""


class Mark(msgspec.Struct, frozen=True, gc=False, tag=True):
    """A named moment, such as the end of a phase. What is in use then stands in the result under this name."""

    name: str


Event = Allocate | Free | UsedBy | Synchronize | EmptyCache | Mark
