"""GPU kernels, each with a PyTorch twin that runs anywhere."""
