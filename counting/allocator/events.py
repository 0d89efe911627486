"""The log of a step: what is allocated and freed, in the order in which the program asks for it. Torch-free.

A stream is a name. Everything happens in the order of the program, which is ahead of the device: a storage is freed
when its last reference goes, whether its kernels have run or not.
"""

import msgspec


class Allocate(msgspec.Struct, frozen=True, gc=False, tag=True):
    """A storage of `bytes` is made while `stream` is current. No other storage that is not freed yet has its `key`.

    0 bytes take no block; the key can be freed all the same. `name`, of the tensor or the operation, is for the
    snapshot alone.
    """

    key: int
    bytes: int
    stream: str
    name: str = ""


class Free(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The last reference to a storage goes. A storage that is resized is freed, and allocated under another key."""

    key: int


class UsedBy(msgspec.Struct, frozen=True, gc=False, tag=True):
    """`torch.Tensor.record_stream`: the storage, once freed, waits until `stream` has done what it has to do by then.

    The log does not say when that is: the block is free at the next `Synchronize`, which is an upper bound.
    """

    key: int
    stream: str


class Synchronize(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The program waits for the device: every stream has done its work."""


class Mark(msgspec.Struct, frozen=True, gc=False, tag=True):
    """The end of what happened since the mark before, such as a phase; the result has what is then in use."""

    name: str


Event = Allocate | Free | UsedBy | Synchronize | Mark
