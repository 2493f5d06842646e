"""Where the tests compute: on the CPU, or where WM_TEST_DEVICE says (benchmarks/gpu.py: cuda)."""

import os

import torch

DEVICE = os.environ.get("WM_TEST_DEVICE", "cpu")


def assert_same(got: torch.Tensor, expected: torch.Tensor) -> None:
    """Equal on a CPU; on a GPU, whose kernels differ between training and evaluation mode, to float32's rounding."""
    if DEVICE == "cpu":
        assert torch.equal(got, expected)
    else:
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
