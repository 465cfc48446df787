"""Kernels for GPUs, written in Triton and compiled when a layer of a new kind is first seen.

They know nothing of torch: `attention.triton` launches them. Names in capitals are constants of a compiled
kernel; everything else is read when it runs.
"""
