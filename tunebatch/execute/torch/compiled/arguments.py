"""What the attention kernels are given: integers, each at its place.

Addresses are of ``query``, ``key``, ``value`` (before rotation), ``out``, ``pages``, ``block_tables``,
``context_lens``, ``query_start``; strides are in elements; cos to eps are `Rotation.arguments`.
"""

(
    QUERY,
    KEY,
    VALUE,
    QUERY_TOKEN_STRIDE,
    QUERY_HEAD_STRIDE,
    KEY_TOKEN_STRIDE,
    KEY_HEAD_STRIDE,
    VALUE_TOKEN_STRIDE,
    VALUE_HEAD_STRIDE,
    OUT,
    PAGES,
    TABLES,
    TABLE_WIDTH,
    CONTEXT_LENS,
    QUERY_START,
    NUM_SEQUENCES,
    NUM_SLICES,
    KV_HEADS,
    SCRATCH,
    COS,
    SIN,
    HALF,
    QUERY_NORM,
    KEY_NORM,
    EPS,
    SCALE,
    WINDOW,
    SOFTCAP,
    SINKS,
) = range(29)
NUM_ARGUMENTS = SINKS + 1
