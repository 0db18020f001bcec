"""The phantom's abdominal organs and vessels: one short function each.

Lengths are mm in the model trunk, as in `anatomy.py`.
"""

import numpy as np
from scipy import ndimage

from nnunetv2_freetumor.experiments.phantom.anatomy import ORGANS, Trunk
from nnunetv2_freetumor.experiments.phantom.scene import LengthMm, Point, ellipse, ellipsoid, intersect, tube, unite


def paint_abdomen(trunk: Trunk) -> None:
    """Paint all abdominal organs; what comes later lies in front."""
    for paint in (
        _paint_fat_vessels,
        _paint_bowel,
        _paint_stomach,
        _paint_spleen,
        _paint_kidneys,
        _paint_great_vessels,
        _paint_pancreas,
        _paint_liver,
        _paint_gallbladder,
    ):
        paint(trunk)


def _paint_fat_vessels(trunk: Trunk) -> None:
    """Paint short vessels into the mesenteric fat."""
    for _ in range(36):
        start = np.array([trunk.rng.uniform(-75, 80), trunk.rng.uniform(-60, 5), trunk.rng.uniform(-110, 0)])
        turns = np.cumsum(trunk.rng.normal(0, 9, (4, 3)), axis=0)
        found = tube(trunk.scene, np.vstack([start, start + turns]), np.linspace(2.2, 0.8, 5))
        trunk.scene.paint(found.crop, found.distance, trunk.hu["vena_cava"] * 0.8)


COLON: dict[str, list[Point]] = {
    "ascending": [(-96, 20, -140), (-98, 12, -110), (-95, 2, -84), (-80, -22, -72)],
    "transverse": [(-80, -22, -72), (-45, -58, -66), (0, -68, -74), (48, -62, -58), (84, -32, -28), (97, 8, -6)],
    "descending": [(97, 8, -6), (104, 26, -40), (104, 24, -80), (100, 20, -140)],
}


def _paint_bowel(trunk: Trunk) -> None:
    for _ in range(13):
        points = _loop(trunk.rng)
        _paint_gut(trunk, points, list(trunk.rng.uniform(9, 13, len(points))), 2.2, gas_share=0.08)
    duodenum: list[Point] = [
        (-24, -36, -14),
        (-44, -22, -22),
        (-46, -6, -44),
        (-32, 6, -66),
        (0, 8, -70),
        (26, -2, -54),
    ]
    _paint_gut(trunk, duodenum, [10, 11, 11, 11, 10, 9], 2.5, gas_share=0.0)
    for points in COLON.values():
        moved = _points(np.asarray(points) + trunk.rng.normal(0, 3, (len(points), 3)))
        radius = trunk.rng.uniform(15, 21)
        _paint_gut(trunk, moved, [radius] * len(points), 2.0, gas_share=trunk.rng.uniform(0.1, 0.6), feces=True)


def _loop(rng: np.random.Generator) -> list[Point]:
    center = np.array([rng.uniform(-55, 75), rng.uniform(-58, -22), rng.uniform(-120, -45)])
    angle = np.linspace(0, rng.uniform(3, 6), 7) + rng.uniform(0, 6)
    flat = np.stack([np.cos(angle), 0.6 * np.sin(angle), 0.5 * np.sin(2 * angle)], axis=1) * rng.uniform(20, 32)
    return _points(center + flat + rng.normal(0, 4, (7, 3)))


def _points(array: np.ndarray) -> list[Point]:
    return [(float(x), float(y), float(z)) for x, y, z in array]


def _paint_gut(
    trunk: Trunk, points: list[Point], radii: list[LengthMm], wall_mm: float, gas_share: float, feces: bool = False
) -> None:
    scene, rng = trunk.scene, trunk.rng
    crop, outer = tube(scene, points, radii)
    if outer.size == 0:
        return
    x, y, z = scene.coordinates(crop)
    folds = np.sin((x + y) / 4.5) * np.sin((z - y) / 5.0) * (2.2 if feces else 0.8)
    outer = np.maximum(outer + folds, trunk.cavity[crop] + 1)
    scene.paint(crop, outer, trunk.hu["gut_wall"], ORGANS["bowel"])
    lumen = outer + wall_mm
    content = np.full(outer.shape, rng.uniform(5, 30), dtype=np.float32)
    if feces:
        lumps = ndimage.gaussian_filter(rng.standard_normal(outer.shape, dtype=np.float32), 1.4)
        content = 10 + np.where(lumps > 0.10, -420.0, 260.0 * lumps)
    scene.paint(crop, lumen, content)
    if gas_share > rng.uniform(0, 0.5):
        level = np.quantile(y[lumen < 0], gas_share) if (lumen < 0).any() else -1e3
        scene.paint(crop, np.maximum(lumen, y - level), -960.0)


def _paint_stomach(trunk: Trunk) -> None:
    scene, rng = trunk.scene, trunk.rng
    points = [(52, 34, 66), (62, 16, 48), (66, -18, 30), (56, -46, 8), (28, -60, -10), (-2, -54, -14), (-24, -40, -12)]
    fullness = rng.uniform(0.75, 1.1)
    radii = [fullness * r for r in (22, 29, 29, 24, 18, 15)] + [8.0]
    crop, outer = tube(scene, points, radii)
    y = scene.y[crop]
    outer = intersect(intersect(outer, trunk.cavity[crop] + 2, 5), trunk.diaphragm[crop] + 3, 5)
    scene.paint(crop, outer, trunk.hu["gut_wall"], ORGANS["stomach"])
    lumen = outer + rng.uniform(3, 5.5)
    food = ndimage.gaussian_filter(rng.standard_normal(outer.shape, dtype=np.float32), 1.6) * 110
    scene.paint(crop, lumen, rng.uniform(8, 30) + food * rng.uniform(0.1, 1))
    scene.paint(crop, np.maximum(lumen, y - rng.uniform(-52, -30)), -970.0)


def _paint_spleen(trunk: Trunk) -> None:
    scene = trunk.scene
    crop = scene.crop((40, -40, -40), (140, 95, 100))
    x, y, z = scene.coordinates(crop)
    spleen = ellipsoid(x, y, z, center=(84, 36, 36), radii=(42, 58, 54))
    spleen = intersect(spleen, -ellipsoid(x, y, z, center=(42, 2, 34), radii=(46, 52, 64)), 8)
    spleen = intersect(intersect(spleen, trunk.cavity[crop] + 2, 4), trunk.diaphragm[crop] + 3, 4)
    scene.paint(crop, spleen, trunk.hu["spleen"], ORGANS["spleen"])


def _paint_kidneys(trunk: Trunk) -> None:
    for side, cz in ((-1, -50.0 + trunk.rng.normal(0, 5)), (1, -34.0 + trunk.rng.normal(0, 5))):
        scene = trunk.scene
        crop = scene.crop((min(0, side * 105), -10, cz - 70), (max(0, side * 105), 90, cz + 70))
        x, y, z = scene.coordinates(crop)
        u, v, w = x - side * (64 - 0.14 * (z - cz)), y - 40 + 0.16 * (z - cz), z - cz
        p, q = (u * side * 0.85 + v * 0.53), (v * 0.85 - u * side * 0.53)
        kidney = ellipsoid(p, q, w, center=(0, 0, 0), radii=(28, 24, 54)) + 1.1 * np.sin(w / 7.0) * np.sin(q / 8.0)
        sinus = ellipsoid(p, q, w, center=(-20, 0, 0), radii=(20, 9, 26))
        scene.paint(crop, intersect(kidney, -sinus, 6), trunk.hu["cortex"], ORGANS["kidney"])
        around = np.arctan2(q, p + 8) * 4 + np.sin(w / 6.5) * 2
        pyramids = np.maximum(np.maximum(kidney + 7, 5 - sinus), -6 * (np.sin(around * 2) + 0.55))
        scene.paint(crop, pyramids, trunk.hu["medulla"])
        pelvis = ellipsoid(p, q, w, center=(-14, 0, -4), radii=(12, 5, 11))
        scene.paint(crop, pelvis, 12.0)


def _paint_pancreas(trunk: Trunk) -> None:
    scene = trunk.scene
    points = [(-24, -4, -48), (-24, -10, -32), (-14, -20, -20), (6, -27, -12), (30, -20, -2), (54, 0, 10), (76, 16, 20)]
    crop, pancreas = tube(scene, points, [12, 15, 13, 9, 10.5, 11, 8])
    x, y, z = scene.coordinates(crop)
    lobules = np.sin(x / 2.1) * np.sin(y / 1.9 + z / 5) * np.sin(z / 2.3)
    pancreas = pancreas + 1.9 * lobules
    scene.paint(crop, pancreas, trunk.hu["pancreas"] + 14 * np.minimum(lobules, 0), ORGANS["pancreas"])
    duct = tube(scene, [(p[0], p[1] + 1, p[2]) for p in points[1:]], [1.2] * 6)
    scene.paint(duct.crop, duct.distance, 15.0)
    duct = tube(scene, [(-30, -4, -48), (-28, -2, -20), (-34, -14, 8)], [2.6, 2.8, 2.4])
    scene.paint(duct.crop, duct.distance, 10.0)


GREAT_VESSELS: tuple[tuple[str, list[Point], list[LengthMm]], ...] = (
    ("vena_cava", [(-22, 16, -140), (-22, 18, -40), (-24, 16, 20), (-24, 14, 66), (-14, 2, 100)], [11, 11, 11, 12, 13]),
    ("vena_cava", [(-22, 18, -44), (-44, 28, -48)], [5.5, 4]),
    ("vena_cava", [(-20, 8, -34), (6, 2, -32), (28, 18, -32), (48, 32, -33)], [5, 4, 5, 4]),
    ("vena_cava", [(-12, -14, -18), (-12, -16, -60), (-8, -20, -110)], [6, 5.5, 3.5]),
    ("portal_vein", [(-8, -14, -14), (-22, -16, 2), (-36, -16, 18)], [6.5, 6.5, 6.5]),
    ("portal_vein", [(-8, -14, -14), (24, -10, -2), (52, 8, 10), (78, 22, 22)], [5, 4.5, 4, 3.5]),
    ("aorta", [(6, 16, -140), (6, 18, -60), (9, 24, 20), (14, 30, 70), (16, 32, 140)], [9, 9.5, 10.5, 11, 11.5]),
    ("aorta", [(7, 16, -12), (5, -2, -24), (2, -14, -60), (0, -18, -100)], [4, 3.6, 3, 2]),
    ("aorta", [(8, 16, 4), (6, -2, 8), (-18, -8, 10), (-34, -18, 16)], [3.8, 3.4, 2.6, 2.2]),
    ("aorta", [(6, -2, 8), (26, 6, 12), (48, 6, 16), (76, 24, 24)], [3.0, 2.6, 2.6, 2.2]),
    ("aorta", [(2, 18, -38), (-24, 28, -46), (-46, 32, -49)], [2.8, 2.4, 2]),
    ("aorta", [(12, 20, -34), (32, 26, -34), (48, 34, -34)], [2.8, 2.4, 2]),
)


def _paint_great_vessels(trunk: Trunk) -> None:
    scene = trunk.scene
    for side in (-1, 1):
        crus = tube(
            scene,
            [(side * 13 + 2, 30, -60), (side * 17 + 3, 28, -10), (side * 17 + 4, 16, 30), (2, 0, 62)],
            [4, 6, 6, 4],
        )
        scene.paint(crus.crop, crus.distance, trunk.hu["muscle"])
        psoas = tube(scene, [(side * 26, 46, 8), (side * 32, 48, -50), (side * 42, 42, -140)], [4, 13, 21])
        scene.paint(psoas.crop, psoas.distance, trunk.hu["muscle"])
        adrenal = tube(scene, [(side * 30 - 4, 18, 22), (side * 36 - 2, 30, 6), (side * 40, 36, 2)], [2.2, 2.4, 1.6])
        scene.paint(adrenal.crop, adrenal.distance, 0.7 * trunk.hu["pancreas"])
    for tissue, points, radii in GREAT_VESSELS:
        found = tube(scene, points, radii)
        scene.paint(found.crop, found.distance, trunk.hu[tissue], ORGANS["aorta"] if tissue == "aorta" else None)


def _paint_liver(trunk: Trunk) -> None:
    scene = trunk.scene
    crop = scene.crop((-145, -100, -105), (95, 95, 110))
    x, y, z = scene.coordinates(crop)
    right = ellipsoid(x, y, z, center=(-66, 2, 14), radii=(76, 92, 94))
    left = ellipsoid(x, y, z, center=(8, -50, 36), radii=(84, 44, 40))
    liver = unite(right, left, 26)
    column = ellipse(x, y, (14, 48), (41, 44))
    kidney = ellipsoid(x, y, z, center=(-64, 40, -48), radii=(32, 31, 57))
    hilum = ellipsoid(x, y, z, center=(-18, -20, -12), radii=(26, 24, 34))
    stomach = ellipsoid(x, y, z, center=(66, -10, 30), radii=(36, 44, 40))
    cava = ellipse(x, y, (-24, 15), (11, 11)) + np.maximum(0, z - 60) * 0.3
    for other, rounding in ((column, 12), (kidney, 10), (hilum, 16), (stomach, 10), (cava, 4)):
        liver = intersect(liver, -other, rounding)
    fissure = np.maximum(np.abs(x + 14 + 0.2 * y) - np.clip((52 - z) / 14, 0, 2), y + 26)
    liver = intersect(liver, -fissure, 5)
    gallbladder = ellipsoid(x, y, z, center=(-44, -46, -20), radii=(16, 22, 26))
    liver = intersect(liver, -gallbladder, 5)
    liver = intersect(liver, (-78 + 0.55 * (x + 110) - z) * 0.87, 24)
    liver = intersect(intersect(liver, trunk.cavity[crop] + 1.5, 6), trunk.diaphragm[crop] + 2, 5)
    scene.paint(crop, liver, trunk.hu["liver"], ORGANS["liver"])


def _paint_gallbladder(trunk: Trunk) -> None:
    crop = trunk.scene.crop((-70, -80, -60), (-20, -15, 20))
    bag = ellipsoid(*trunk.scene.coordinates(crop), (-44, -46, -20), (14, 20, 23))
    trunk.scene.paint(crop, bag, 0.6 * trunk.hu["gut_wall"] + 10)
    trunk.scene.paint(crop, bag + 1.8, 9.0)
