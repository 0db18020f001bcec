"""The phantom's trunk: skin, fat and muscles, chest, bones; and what all its organs share.

All lengths are mm in the model body: x to the patient's left, y to the back, z to the head, zero at the first lumbar
vertebra in the middle of the body. Numbers were set by eye against abdominal CT.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from nnunetv2_freetumor.experiments.phantom.scene import (
    EVERYWHERE,
    Scene,
    capsule,
    ellipse,
    ellipsoid,
    intersect,
    tube,
    unite,
)

ORGANS = {
    "liver": 1,
    "pancreas": 2,
    "kidney": 3,
    "lung": 4,
    "spleen": 5,
    "stomach": 6,
    "bowel": 7,
    "bone": 8,
    "aorta": 9,
}
PHASES = ("unenhanced", "arterial", "venous")
TISSUE_HU = {  # unenhanced, late arterial, portal venous
    "liver": (57, 70, 112),
    "portal_vein": (42, 105, 168),
    "hepatic_vein": (42, 60, 158),
    "aorta": (42, 285, 158),
    "vena_cava": (42, 70, 132),
    "heart": (42, 190, 150),
    "cortex": (33, 165, 190),
    "medulla": (31, 60, 165),
    "pancreas": (42, 105, 98),
    "spleen": (48, 118, 122),
    "gut_wall": (38, 80, 92),
    "muscle": (52, 57, 62),
}


class Trunk(NamedTuple):
    """A trunk being painted: its scene, tissue HU, random numbers, and the surfaces that organs share (in mm)."""

    scene: Scene
    hu: dict[str, float]
    rng: np.random.Generator
    surface: NDArray[np.float32]  # of the muscles and the rib cage
    cavity: NDArray[np.float32]
    diaphragm: NDArray[np.float32]  # positive above it


def tissue_hu(phase: str, rng: np.random.Generator) -> dict[str, float]:
    """Draw the HU of each tissue; one strength of enhancement moves all organs together."""
    column, strength = PHASES.index(phase), rng.normal(1.0, 0.12)
    hu = {name: row[0] + strength * (row[column] - row[0]) + rng.normal(0, 2) for name, row in TISSUE_HU.items()}
    steatosis = float(np.clip(rng.normal(0, 7), -6, 15))  # fat lowers the liver's HU
    return {**hu, "liver": hu["liver"] - steatosis}


def paint_trunk(scene: Scene, thin: int, hu: dict[str, float], rng: np.random.Generator) -> Trunk:
    """Paint skin, fat, muscles and the fat-filled cavity; `thin` layers of the scene make one CT slice."""
    flat = scene.middle(thin)
    x, y, z = flat.x, flat.y, flat.z
    surface = _trunk_surface(x, y, z)
    front = np.clip(-y / 80, 0, 1)
    fat = rng.uniform(7, 20) * (1 + 0.7 * np.exp(-(((np.abs(x) - 90) / 50) ** 2)) * (1 - front))
    _paint_couch(flat, float(fat.max()))
    flat.paint(EVERYWHERE, surface - fat, 30.0)
    flat.paint(EVERYWHERE, surface - fat + 2.2, -103.0)
    flat.paint(EVERYWHERE, surface, hu["muscle"])
    back = ellipse(x, y, (0, 92), (66, 42))
    wall = 13 - 7 * front * np.clip(np.abs(x) / 30 - 0.2, 0, 1) - 6 * front * np.exp(-((x / 5) ** 2))
    cavity = intersect(surface + wall, -back, 14)
    _paint_wall_layers(flat, surface, back)
    flat.paint(EVERYWHERE, cavity, -98.0)
    scene.hu[:] = np.repeat(flat.hu, thin, axis=0)
    fields = [np.repeat(f.astype(np.float32), thin, axis=0) for f in (surface, cavity, _dome(x, y))]
    return Trunk(
        scene, hu, rng=rng, surface=fields[0], cavity=fields[1], diaphragm=(scene.z - fields[2]) * np.float32(0.62)
    )


def _trunk_surface(x: NDArray, y: NDArray, z: NDArray) -> NDArray:
    waist = 1 - 0.05 / (1 + np.exp((z + 45) / 12))
    p, q = (x / (140 * waist)) ** 2, (y / (96 * waist)) ** 2
    norm = 0.6 * np.sqrt(p + q) + 0.4 * np.sqrt(np.sqrt(p * p + q * q))
    surface = (norm - 1) * (104 + 14 * np.minimum(np.abs(x) / 140, 1))
    return surface + 5 * np.exp(-((x / 9) ** 2)) * (y > 0)  # the furrow over the spine


def _dome(x: NDArray, y: NDArray) -> NDArray:
    """Compute the height of the diaphragm."""
    right = 86 - 74 * (((x + 62) / 74) ** 2 + ((y + 2) / 82) ** 2) ** 1.4
    left = 72 - 78 * (((x - 62) / 68) ** 2 + ((y + 5) / 78) ** 2) ** 1.3
    middle = 70 - 60 * ((x / 60) ** 2 + ((y + 36) / 56) ** 2) ** 1.5
    return np.maximum(-unite(unite(-right, -middle, 25), -left, 25), -25)


def _paint_couch(scene: Scene, fat_mm: float) -> None:
    y, x = np.meshgrid(scene.grid.axis(1), scene.grid.axis(2), indexing="ij")
    top = y - (98 * scene.scale + 0.75 * fat_mm) + x**2 / 3800
    both = np.broadcast_to(np.minimum(np.abs(top - 8) - 1.3, np.abs(top - 30) - 1.3), scene.hu.shape)
    scene.paint(EVERYWHERE, both, 40.0)


def _paint_wall_layers(scene: Scene, surface: NDArray, back: NDArray) -> None:
    x, y = scene.x, scene.y
    side = np.abs(x) - 62 - 0.25 * np.abs(y)
    for depth in (4.2, 8.4):
        layer = np.maximum(np.abs(surface + depth) - 0.45, -side)
        scene.paint(EVERYWHERE, layer, -80.0)
    fascia = np.maximum(np.abs(back + 1.5) - 0.8, surface + 4)
    scene.paint(EVERYWHERE, np.maximum(fascia, 30 - np.abs(x)), -70.0)
    for side_of in (-1, 1):
        for center, radii in (((side_of * 20, 84), (17, 15)), ((side_of * 46, 82), (15, 13))):
            gap = np.abs(ellipse(x, y, center, radii)) - 0.55
            scene.paint(EVERYWHERE, np.maximum(gap, surface + 3), -40.0)


def paint_chest(trunk: Trunk) -> None:
    """Paint diaphragm, lungs and heart."""
    _paint_lungs(trunk)
    _paint_heart(trunk)


def _paint_lungs(trunk: Trunk) -> None:
    scene = trunk.scene
    crop = scene.crop((-150, -110, -27), (150, 110, 300))
    x, y, z = scene.coordinates(crop)
    cavity, diaphragm = trunk.cavity[crop], trunk.diaphragm[crop]
    middle = unite(ellipse(x, y, (0, 52), (30, 30)), ellipse(x, y, (8, 22), (22, 24)), 10)
    middle = unite(middle, ellipsoid(x, y, z, center=(16, -34, 122), radii=(70, 48, 60)), 8)
    middle = unite(middle, ellipse(x, y, (0, -75), (20, 30)), 14)
    scene.paint(crop, np.maximum(np.abs(diaphragm) - 1.4, cavity + 1), trunk.hu["muscle"])
    scene.paint(crop, np.maximum(np.maximum(cavity, 1.4 - diaphragm), middle - 6), -60.0)
    lung = intersect(intersect(cavity + 1, -diaphragm, 3), -middle, 10)
    scene.paint(crop, lung, -868 + 45 * np.clip(y / 80, -1, 1), ORGANS["lung"])


def _paint_heart(trunk: Trunk) -> None:
    scene = trunk.scene
    crop = scene.crop((-70, -95, 55), (100, 30, 190))
    x, y, z = scene.coordinates(crop)
    heart = ellipsoid(x, y, z, center=(18, -34, 126), radii=(58, 40, 54))
    heart = intersect(heart, -trunk.diaphragm[crop] + 3, 6)
    scene.paint(crop, heart, trunk.hu["muscle"] + 0.35 * (trunk.hu["heart"] - 42))
    for center, radii in (((38, -30, 128), (24, 22, 36)), ((-6, -44, 130), (26, 20, 42)), ((2, -4, 138), (26, 13, 30))):
        scene.paint(crop, np.maximum(ellipsoid(x, y, z, center=center, radii=radii), heart + 4), trunk.hu["heart"])
    for path, radius, tissue in (([(-2, 4, 60), (-4, 8, 130)], 6.5, "gut_wall"),):
        found = tube(scene, path, [radius, radius])
        scene.paint(found.crop, found.distance, trunk.hu[tissue] - 15)


def paint_bones(trunk: Trunk) -> None:
    """Paint vertebrae, ribs and sternum."""
    _paint_spine(trunk)
    _paint_ribs(trunk)


def _paint_spine(trunk: Trunk) -> None:
    scene = trunk.scene
    crop = scene.crop((-60, 10, -300), (60, 120, 300))
    x, y, z = scene.coordinates(crop)
    period = np.float32(33.0)
    local = np.mod(z + trunk.rng.uniform(0, 33), period) - period / 2
    waist = 1 - 0.07 * np.cos(local / period * 2 * np.pi)
    column = ellipse(x, y, (0, 43), (23, 17)) + (waist - 0.93) * -9
    canal = ellipse(x, y, (0, 69), (10, 8.5))
    column = intersect(column, -canal, 3)
    scene.paint(crop, column + 1, 88.0)  # discs
    vertebra = np.maximum(column, np.abs(local) - 12.5)
    for side in (-1, 1):
        for a, b, radii in (
            ((side * 13, 55, 4), (side * 17, 70, 2), (6, 6)),
            ((side * 17, 70, 2), (side * 3, 82, -4), (5.5, 4)),
            ((side * 18, 69, 0), (side * 42, 74, 2), (5, 3.5)),
            ((side * 18, 72, 8), (side * 18, 74, -14), (5.5, 5.5)),
        ):
            vertebra = unite(vertebra, capsule(x, y, local, a=a, b=b, radii=radii), 3)
    vertebra = unite(vertebra, capsule(x, y, local * 0.45, a=(0, 80, -3), b=(0, 99, -5), radii=(4, 4.5)), 3)
    vertebra = intersect(vertebra, -canal, 1)
    scene.paint(crop, vertebra, 520.0, ORGANS["bone"])
    marrow = ndimage.gaussian_filter(trunk.rng.standard_normal(x.shape, dtype=np.float32), 0.8) * 160
    scene.paint(crop, vertebra + 2.0, 195 + marrow)
    scene.paint(crop, canal, -20.0)
    scene.paint(crop, ellipse(x, y, (0, 69), (7.5, 6.5)), 32.0)


def _paint_ribs(trunk: Trunk) -> None:
    """Paint ribs, which run down and forward in the chest wall, their cartilage, and the sternum."""
    scene = trunk.scene
    near = np.abs(trunk.surface + 8) < 6
    x, y, z, ring = scene.x[near], scene.y[near], scene.z[near], trunk.surface[near] + 8
    angle = np.arctan2(np.abs(x) / 140, y / 96)  # 0 at the spine, pi at the sternum
    lift = z + 62 * angle - 54 * np.maximum(angle - 1.7, 0) ** 2 - 42
    number = np.clip(np.round(lift / 25), 0, 12)
    reach = np.asarray([0.85, 1.3, 1.9, 2.25, 2.5], dtype=np.float32)[np.minimum(number, 4).astype(int)]
    tube_mm = (np.sqrt((ring / 4.2) ** 2 + ((lift - 25 * number) * 0.95 / 6.5) ** 2) - 1) * 4.6
    end = (angle - reach) * 110
    distance = np.full(near.shape, 1e3, dtype=np.float32)
    for value, hu, organ in (
        (np.maximum(tube_mm, np.maximum(end, 40 - 95 * angle)), 560.0, ORGANS["bone"]),
        (np.maximum(tube_mm + 1.9, end + 3), 170.0, None),
        (np.maximum(np.maximum(tube_mm, -end), np.maximum((angle - 2.95) * 110, 0.5 - number)), 105.0, None),
    ):
        distance[near] = value
        scene.paint(EVERYWHERE, distance, hu, organ)
    crop = scene.crop((-20, -110, 68), (20, -70, 300))
    x, y, z = scene.coordinates(crop)
    scene.paint(crop, np.maximum(ellipse(x, y, (0, -87), (17, 5.5)), 70 - z), 330.0, ORGANS["bone"])
