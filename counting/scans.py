"""Scans that carry a state along the sequence, as plain data: their shapes are measured, their products are formulas.

A scan is named as its published algorithm. `length` is that of a sequence before it is padded to whole chunks.
"""

import msgspec


class StateSpaceScan(msgspec.Struct, frozen=True, kw_only=True):
    """Mamba-2's SSD over `sequences` sequences: `groups` of heads share their B and C of `state_size` channels."""

    sequences: int
    length: int
    heads: int
    groups: int
    head_size: int
    state_size: int
    chunk: int  # tokens

    @property
    def algorithm(self) -> str:
        """The published algorithm and its chunks."""
        return f"Mamba-2 (SSD) in chunks of {self.chunk}"


class DeltaRuleScan(msgspec.Struct, frozen=True, kw_only=True):
    """A gated delta rule over `sequences` sequences: each of `heads` has a state of `key_size` x `value_size`."""

    sequences: int
    length: int
    heads: int
    key_size: int
    value_size: int
    chunk: int  # tokens
    decays_by_channel: bool  # Kimi Delta Attention; else gated DeltaNet, with one decay for each head

    @property
    def algorithm(self) -> str:
        """The published algorithm and its chunks."""
        name = "Kimi Delta Attention" if self.decays_by_channel else "gated DeltaNet"
        return f"{name} in chunks of {self.chunk}"


class NamedScan(msgspec.Struct, frozen=True, kw_only=True):
    """A scan without products by formula, named by `algorithm`.

    It is elementwise, as the window of a short convolution is, or its products are measured.
    """

    algorithm: str


Scan = StateSpaceScan | DeltaRuleScan | NamedScan


def products_by_formula(scan: Scan) -> bool:
    """Whether a scan multiplies matrices that are counted by formula alone; else it is elementwise, or measured."""
    return not isinstance(scan, NamedScan)
