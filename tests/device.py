"""Where the tests compute: on the CPU, or where WM_TEST_DEVICE says (benchmarks/gpu.py: cuda)."""

import os

DEVICE = os.environ.get("WM_TEST_DEVICE", "cpu")
