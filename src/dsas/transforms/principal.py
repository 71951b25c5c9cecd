"""Principal addition: T(t) = t + u (u . (mean_T - mean_S)), u the first principal direction of the differences.

The differences are those of every target sample to every source sample, not centred, so that the common difference
counts and no pairing is needed. With means m and covariances K of the two sets their second moment is

    K_T + K_S + (mean_T - mean_S)(mean_T - mean_S)^T

and u is its first eigenvector. The component of the difference of the means along u is added.

Source: representation engineering (arXiv 2310.01405, section 3.1); also offered by CAA's successors as "PCA of
differences". Limitations: one direction only; no centring, which would remove the very difference that is sought.
"""

from typing import ClassVar, final

import numpy as np
import torch

from dsas.methods.base import Facts, Samples
from dsas.transforms.affine import Translation


@final
class PrincipalAddition(Translation):
    """Adds, to every token, the difference of the means along the first principal direction of the differences."""

    name: ClassVar[str] = "caa-pca"
    facts: ClassVar[Facts] = Facts(
        formula="t + u (u . (mean_T - mean_S)), u = first principal direction of all differences",
        paper="RepE, arXiv 2310.01405",
        left_out="one direction, no centring",
        flops="d",
    )

    @classmethod
    def fit(cls, source: Samples, target: Samples) -> "PrincipalAddition":
        """Return the addition, computed in float64; when the sets are the same it adds nothing."""
        s, t = source.double().numpy(), target.double().numpy()
        difference = t.mean(0) - s.mean(0)
        # Rows whose second moment is that of all differences, far fewer than there are differences.
        rows = np.concatenate([_spread(t), _spread(s), difference[None]])
        direction = np.linalg.svd(rows, full_matrices=False)[2][0]
        return cls(torch.from_numpy(direction * (direction @ difference)).float())


def _spread(x: np.ndarray) -> np.ndarray:
    return (x - x.mean(0)) / np.sqrt(len(x))
