"""What benchmarks run in their own process, without Ray and HTTP; these modules import torch."""
