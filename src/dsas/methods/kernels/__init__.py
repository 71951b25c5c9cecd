"""The fused step: an affine edit, times a logistic regulator, in as few passes over the activation as can be had.

    t'  =  t + row * sigmoid(theta . t + bias) * (slope * t + offset)

Three ways to compute it take the same arguments: `eager` (PyTorch), `operator` (one opaque operator, torch.compile and
autograd know it) and `triton` (CUDA; needs the package of that name, which comes with PyTorch for CUDA).
"""

from dsas.methods.kernels.fold import Fold

__all__ = ["Fold"]
