"""FLOPs of the matrix products of scans that carry a state along the sequence, by their published chunked algorithms.

Where a kernel computes only the lower triangle of a chunk's square, the whole square is counted, as for attention. The
last chunk is counted as a whole one, as all implementations pad it. What is done element by element (decays, gates, the
scan over the chunks' states, short convolutions, the recurrence of Mamba-1) is no matrix product and counts 0 here.
"""

from collections.abc import Iterable, Sequence

from counting.counts import LayerCounts, ModelCounts
from counting.scans import DeltaRuleScan, Scan, StateSpaceScan


def scan_flops(scan: Scan) -> int:
    """FLOPs of one scan's matrix products; 0 for one that is elementwise."""
    if isinstance(scan, StateSpaceScan):
        return state_space_flops(scan)
    return delta_rule_flops(scan) if isinstance(scan, DeltaRuleScan) else 0


def count_scans(like: ModelCounts, scans: Sequence[Iterable[Scan]]) -> ModelCounts:
    """FLOPs of the scans of each distinct layer; the layers are those of `like`, in the same order."""
    return ModelCounts(
        layers=tuple(
            LayerCounts(kind=layer.kind, count=layer.count, scan_flops=sum(map(scan_flops, of_layer)))
            for layer, of_layer in zip(like.layers, scans, strict=True)
        )
    )


def state_space_flops(scan: StateSpaceScan) -> int:
    """Mamba-2's SSD: Dao & Gu 2024 (arXiv 2405.21060), section 6, the block decomposition.

    For each chunk of Q tokens, with N the state's and P the head's channels: C B^T (Q x N x Q), once for each group of
    heads that shares B and C; and for each head the masked product times X (Q x Q x P), the chunk's state B^T X
    (N x Q x P), and C times the state before the chunk (Q x N x P). The states pass from chunk to chunk by a scalar
    scan, which the paper counts as elementwise; its listing writes that scan as a product over all pairs of chunks.
    """
    chunk, state, head = scan.chunk, scan.state_size, scan.head_size
    of_group = chunk * chunk * state
    of_head = chunk * chunk * head + 2 * chunk * state * head
    return 2 * scan.sequences * _chunks(scan) * (scan.groups * of_group + scan.heads * of_head)


def delta_rule_flops(scan: DeltaRuleScan) -> int:
    """Gated DeltaNet: Yang et al. 2024 (arXiv 2412.06464), section 3.3, with the UT transform of arXiv 2406.06484.

    For each head and chunk of C tokens, with K the key's and V the value's channels: K K^T and Q K^T (C x K x C each);
    the triangular T times K, giving W (C x C x K), and times V, giving U (C x C x V); the masked Q K^T times the new
    values (C x C x V); and the products with the state of W, of Q, and of K^T with the new values (C x K x V each).
    Inverting the triangular matrix to T is forward substitution, row by row, and not counted. Heads that share queries
    and keys have all of these products each, because transformers repeats queries and keys for them before the scan.
    With one decay for each head, K K^T and Q K^T could be formed once for the heads that share them, as C B^T of SSD is
    counted once for each group: decays and steps act on these products afterwards. Kimi Delta Attention (Kimi Linear,
    arXiv 2510.26692, section 3) decays each channel on its own: the sizes of the products are the same.
    """
    chunk, key, value = scan.chunk, scan.key_size, scan.value_size
    within = 3 * chunk * chunk * key + 2 * chunk * chunk * value
    with_state = 3 * chunk * key * value
    return 2 * scan.sequences * scan.heads * _chunks(scan) * (within + with_state)


def _chunks(scan: StateSpaceScan | DeltaRuleScan) -> int:
    """Chunks of one sequence, the last one padded."""
    return -(-scan.length // scan.chunk)
