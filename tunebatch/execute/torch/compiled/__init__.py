"""Kernels for CPUs, compiled by numba when first used and run on torch's own threads."""
