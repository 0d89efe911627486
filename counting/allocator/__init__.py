"""What torch's CUDA caching allocator makes of a step's allocations: the bytes that it reserves of the driver.

An estimate. `events` is the log that goes in, `replay` the one function of it, `reserved` what comes out, `snapshot`
the same as a file that torch's viewer opens. The rules are in `blocks` (rounding, pools, splits, merges), `plain`
(segments by cudaMalloc, at `addresses` that the driver chooses) and `expandable` (segments that grow); each names its
place in torch's c10/cuda/CUDACachingAllocator.cpp. Torch-free.
"""
