"""Hold the GPU kernels, each with a PyTorch version that runs anywhere."""
