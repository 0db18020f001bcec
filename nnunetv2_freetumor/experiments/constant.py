"""The simplest generator there is, for comparison: every lesion has the same contrast everywhere."""

from jaxtyping import Float
from torch import Tensor

from nnunetv2_freetumor.plan import Texture
from nnunetv2_freetumor.synthesis.region import Look, Region
from nnunetv2_freetumor.synthesis.volume import mean_of_subvoxels

CONSTANT_HU = -40.0  # typical of liver metastases in the portal venous phase


class ConstantGenerator:
    """Lower the whole lesion by one constant: no texture, no dependence on the host, a sharp edge.

    The edge is averaged over the voxel that it crosses (partial volume), as a scanner would.
    """

    window_mm = 0.0

    def __call__(self, region: Region, texture: Texture, look: Look) -> Float[Tensor, "x y z"]:
        """Return the contrast map in HU."""
        return CONSTANT_HU * mean_of_subvoxels((region.distance_mm < 0).float(), region.subvoxels)
