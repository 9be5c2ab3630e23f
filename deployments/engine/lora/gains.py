"""Compute what DoRA multiplies the base model's products by, once for each adapter.

Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation": the weights of output i of
W + scale * B @ A are brought to the length m_i. With g_i = m_i / |W_i + scale * (B @ A)_i|,

    y = g * (x @ W.T) + bias + x @ A.T @ (g * scale * B).T

so the base model's product is multiplied by g, and g * scale goes into B.
"""

import torch

from deployments.engine.lora.layers import BaseProduct


def gains_of(
    magnitudes: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    base: BaseProduct,
    columns: slice,
) -> torch.Tensor:
    """Return g (out,) of one module, in float32.

    |W_i + C_i|^2 = |W_i|^2 + 2 W_i . C_i + |C_i|^2 with C = b.T @ a, so W is multiplied by the few
    lines of a and nothing of W's size is made.

    Args:
        magnitudes: m (out,).
        a, b: (r, in) and (r, out), the scale in b.
        columns: of the base's product that are this module's.
    """
    a_w = base.products(a)[:, columns].float()  # (r, out)
    a, b = a.float(), b.float()
    squares = base.squared_norms()[columns] + 2 * (b * a_w).sum(0) + (b * (a @ a.t() @ b)).sum(0)
    return magnitudes.float() / squares.sqrt()
