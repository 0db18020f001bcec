"""The adversarial stage's losses, as pure functions."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from nnunetv2_freetumor.generators.grid import VolumeBatch

SHELL_EDGES_MM = tuple(float(edge) for edge in range(-6, 4))  # edges of the shells around the surface, negative inside
SHELLS = len(SHELL_EDGES_MM) - 1
BANDS = 3  # octaves, from the finest
MOMENT_HU = 10.0  # a shell, or a mean residual, that is off by so much counts 1

REAL_CLASS, SYNTHETIC_CLASS = 1, 2  # the voxel critic's; 0 is background


def hinge_critic(
    real: Float[Tensor, "*r"],
    real_weight: Float[Tensor, "*r"],
    synthetic: Float[Tensor, "*n"],
    synthetic_weight: Float[Tensor, "*n"],
) -> Float[Tensor, ""]:
    """Ask for logits above 1 on real and below -1 on synthetic patches, each as far as its weight says."""
    missed = mean_over(functional.relu(1 - real), real_weight)
    return missed + mean_over(functional.relu(1 + synthetic), synthetic_weight)


def hinge_generator(synthetic: Float[Tensor, "*n"], weight: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Ask for high logits on synthetic patches, as far as their weight says."""
    return -mean_over(synthetic, weight)


def voxel_critic(
    synthetic: Float[Tensor, "b 3 x y z"],
    synthetic_mask: VolumeBatch,
    real: Float[Tensor, "r 3 x y z"],
    real_mask: Tensor,
) -> Float[Tensor, ""]:
    """Ask for the class synthetic on synthetic tumor voxels and for the class real on real ones (published)."""
    missed = 1 - mean_over(class_probability(synthetic, SYNTHETIC_CLASS), synthetic_mask)
    mistaken = 1 - mean_over(class_probability(real, REAL_CLASS), real_mask)
    return (missed + mistaken) / 2


def voxel_generator(synthetic: Float[Tensor, "b 3 x y z"], mask: VolumeBatch) -> Float[Tensor, ""]:
    """Ask for the class real on synthetic tumor voxels (published)."""
    return 1 - mean_over(class_probability(synthetic, REAL_CLASS), mask)


def class_probability(logits: Float[Tensor, "b 3 x y z"], name: int) -> VolumeBatch:
    """Return each voxel's probability of one of the voxel critic's classes."""
    return torch.softmax(logits, dim=1)[:, name : name + 1]


def unrecognized(tumor_probability: Float[Tensor, "*n"], lesion: Bool[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Ask the judge for tumor on the lesion's voxels (published)."""
    return 1 - mean_over(tumor_probability, lesion.float())


def r1_penalty(logits: Float[Tensor, "b ..."], inputs: Float[Tensor, "b c x y z"]) -> Float[Tensor, ""]:
    """Measure half the squared gradient of a patch's logit on real inputs (R1, Mescheder et al. 2018).

    The logits' sum is divided by the root of their number: the square is then what one patch has on average.
    """
    patches = logits[0].numel()
    (gradient,) = torch.autograd.grad(logits.sum() / patches**0.5, inputs, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(1).mean()


def shell_means(relative_hu: VolumeBatch, distance_mm: VolumeBatch) -> tuple[Float[Tensor, "s"], Bool[Tensor, "s"]]:
    """Average HU (relative to the host) over shells around the surface, and tell which shells have any voxel."""
    edges = torch.tensor(SHELL_EDGES_MM, device=distance_mm.device)
    shell = torch.bucketize(distance_mm.flatten().detach(), edges, right=True)  # 0 and len(edges): beyond all shells
    sums = torch.zeros(len(edges) + 1, device=edges.device).index_add(0, shell, relative_hu.flatten())
    counts = torch.bincount(shell, minlength=len(edges) + 1)
    return (sums / counts.clamp_min(1))[1:-1], counts[1:-1] > 0


def band_energies(relative_hu: VolumeBatch, mask: VolumeBatch) -> Float[Tensor, "k"]:
    """Return the logarithm of the mean square (HU) inside the lesion, octave by octave from the finest."""
    energies, smooth = [], relative_hu
    for octave in range(BANDS):
        width = 2 ** (octave + 1)
        coarse = functional.avg_pool3d(relative_hu, width)
        coarser = functional.interpolate(coarse, scale_factor=width, mode="trilinear", align_corners=False)
        energies.append(torch.log1p(mean_over((smooth - coarser).square(), mask)))
        smooth = coarser
    return torch.stack(energies)


def residual_mean(residual_hu: VolumeBatch, mask: VolumeBatch) -> Float[Tensor, ""]:
    """Ask for a residual that is 0 on average over the lesions: square of its mean, in units of 10 HU."""
    return (mean_over(residual_hu, mask) / MOMENT_HU).square()


def mean_over(values: Float[Tensor, "*n"], weight: Float[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Average over the weighted voxels of a batch."""
    return (values * weight).sum() / weight.sum().clamp_min(1e-3)
