"""Grow branching vessel trees inside an organ and paint them."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray

from nnunetv2_freetumor.experiments.phantom.scene import Crop, Scene


class Tree(NamedTuple):
    """Vessel points in world mm (x, y, z), and the radius in mm at each."""

    points: Float[np.ndarray, "n 3"]
    radii_mm: Float[np.ndarray, " n"]


def grow_tree(
    root: Float[np.ndarray, "3"], ends: Float[np.ndarray, "e 3"], tip_mm: float, rng: np.random.Generator
) -> Tree:
    """Connect a root with end points by a tree that branches as vessels do.

    Every end point joins the part of the tree that is near and itself not far from the root. The radius follows
    Murray's law: the flow to all ends downstream, to the power of 1 / 2.7.
    """
    points, parents, path = [root], [-1], [0.0]
    for end in ends[np.argsort(np.linalg.norm(ends - root, axis=1))]:
        known = np.asarray(points)
        gap = np.linalg.norm(known - end, axis=1)
        start = int(np.argmin(gap + 0.35 * np.asarray(path)))
        steps = max(int(gap[start] / 2.5), 1)
        for step in range(1, steps + 1):
            place = known[start] + (end - known[start]) * step / steps
            points.append(place + rng.normal(0, 0.5, 3))
            parents.append(start if step == 1 else len(points) - 2)
            path.append(path[start] + gap[start] * step / steps)
    flow = np.ones(len(points))
    leaf = np.ones(len(points), dtype=bool)
    leaf[[p for p in parents if p >= 0]] = False
    flow[~leaf] = 0
    for child in range(len(points) - 1, 0, -1):
        flow[parents[child]] += flow[child]
    return _fill_in(np.asarray(points), np.asarray(parents), tip_mm * flow ** (1 / 2.7))


def _fill_in(points: NDArray, parents: NDArray, radii: NDArray) -> Tree:
    """Insert points between the nodes, so that painted balls merge into tubes."""
    start, end = points[parents[1:]], points[1:]
    shares = np.linspace(0.0, 1.0, 4)[1:]
    filled = np.concatenate([start + (end - start) * share for share in shares])
    return Tree(filled, np.tile(radii[1:], len(shares)))


def push_aside(tree: Tree, centers: Float[np.ndarray, "t 3"], radii_mm: Float[np.ndarray, " t"]) -> Tree:
    """Move vessels out of growing lesions (mass effect): each shell keeps its volume."""
    points = tree.points.copy()
    for center, radius in zip(centers, radii_mm):
        offset = points - center
        distance = np.maximum(np.linalg.norm(offset, axis=1, keepdims=True), 1e-3)
        factor = (distance**3 + 0.7 * radius**3) ** (1 / 3) / distance
        near = distance < 2.5 * radius
        points = np.where(near, center + offset * np.minimum(factor, 4.0), points)
    return Tree(points, tree.radii_mm)


def paint_tree(scene: Scene, crop: Crop, tree: Tree, hu: float, host: Bool[np.ndarray, "z y x"]) -> None:
    """Paint a tree into the host's voxels of a crop, with partial volume."""
    cover = np.zeros(host.shape, dtype=np.float32)
    spacing = np.asarray(scene.grid.spacing_mm)
    origin = np.asarray(scene.grid.origin_mm) + spacing * [w.start for w in crop]
    position = (tree.points[:, ::-1] - origin) / spacing
    for low, high in ((0.0, 1.0), (1.0, 2.0), (2.0, 4.0), (4.0, 20.0)):
        chosen = (tree.radii_mm >= low) & (tree.radii_mm < high)
        if chosen.any():
            _stamp(cover, position[chosen], tree.radii_mm[chosen], spacing)
    scene.hu[crop] += cover * host * np.float32(1) * (np.float32(hu) - scene.hu[crop])


def _stamp(cover: NDArray[np.float32], position: NDArray, radii: NDArray, spacing: NDArray) -> None:
    pixel = spacing[2]
    reach = np.ceil((radii.max() + pixel) / spacing).astype(int)
    offsets = np.stack(np.meshgrid(*(np.arange(-r, r + 1) for r in reach), indexing="ij"), axis=-1).reshape(-1, 3)
    middle = np.round(position).astype(int)
    distance = np.linalg.norm((middle[:, None] + offsets - position[:, None]) * spacing, axis=2)
    share = np.clip(0.5 + (radii[:, None] - distance) / pixel, 0.0, np.minimum(1.0, 2 * radii / pixel)[:, None])
    index = middle[:, None] + offsets
    valid = ((index >= 0) & (index < cover.shape)).all(axis=2) & (share > 0)
    np.maximum.at(cover, tuple(index[valid].T), share[valid].astype(np.float32))
