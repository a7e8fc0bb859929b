"""Fused Triton kernels, each with an eager twin in ``reference.py`` that runs on CPU."""

from .masked_smooth_l1 import RegressionOutput, RegressionStats, masked_smooth_l1
from .topk_instance_norm_mean import topk_instance_norm_mean

__all__ = ["RegressionOutput", "RegressionStats", "masked_smooth_l1", "topk_instance_norm_mean"]
