"""Test files that launch kernels: on the GPU where there is one, else under Triton's interpreter."""

DEVICE_FILES = ["test_topk_instance_norm_mean.py", "test_masked_smooth_l1.py", "test_fused_training.py"]
