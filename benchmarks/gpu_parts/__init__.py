"""What `benchmarks/gpu.py` measures, one part a module, each in a process of its own."""
