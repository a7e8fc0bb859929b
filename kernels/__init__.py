"""Fused Triton kernels, each with an eager twin in ``reference.py``."""
