"""Synthetic thorax CTs with exact labels of the 17 classes of `thorax17`: the demo's patients.

A patient is drawn in the millimetres of a reference body: x to the patient's right, y to the front, z to the
head, the carina near z = 0. Pose and build map that body into the scanner's world (RAS+). Structures are
painted one over the other from signed distances, so that edges carry partial volume and labels are exact.
"""

from __future__ import annotations

import csv
import io
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from scipy import ndimage

from agg2exp_core.files import write_text
from agg2exp_core.organs import load_label_set
from agg2exp_core.records import InputError, Volume
from agg2exp_core.volumes import read_labels, write_volume

PLANTED = (
    "pleural effusion",
    "consolidation",
    "metal",
    "cropped field of view",
    "low dose",
    "mirrored",
    "contrast phase",
)

Case = tuple[str, int, str]
"""case_id, seed, what is planted (empty: nothing)."""

Point = Sequence[float] | np.ndarray
"""x, y, z in mm of the reference body."""

AIR, FAT, MUSCLE, SKIN, CARTILAGE = -1000.0, -100.0, 52.0, 20.0, 115.0

# Profiles of the reference body along z, in mm: the rib cage's inside and the muscles' outside.
CAVITY_Z = np.array([-185, -120, -60, 0, 40, 70, 88, 98], float)
CAVITY_WIDTH = np.array([126, 127, 124, 115, 99, 76, 54, 30], float)
CAVITY_FRONT = np.array([76, 82, 80, 70, 55, 37, 16, 2], float)
CAVITY_BACK = np.array([-27, -27, -27, -27, -24, -16, -2, 8], float)
BODY_Z = np.array([-185, -120, -60, 0, 40, 70, 95, 115, 130, 145], float)
BODY_WIDTH = np.array([146, 150, 150, 150, 150, 148, 132, 96, 72, 64], float)
BODY_FRONT = np.array([98, 102, 101, 92, 78, 62, 48, 40, 38, 38], float)
BODY_BACK = np.array([-62, -62, -62, -62, -62, -60, -60, -58, -58, -58], float)
SQUARENESS = 2.4

RIB_Z = np.array([72, 53, 33, 12, -10, -32, -55, -79, -103, -128, -153, -178], float)
RIB_DROP = np.array([22, 35, 45, 50, 55, 58, 58, 58, 56, 52, 40, 20], float)
RIB_END = np.array([0.78, 0.79, 0.80, 0.80, 0.79, 0.77, 0.75, 0.71, 0.67, 0.63, 0.50, 0.34], float) * np.pi
STERNAL_Z = np.array([37, 12, -9, -26, -42, -56, -69], float)
"""Where the cartilages of ribs 1 to 7 reach the sternum; those of ribs 8 to 10 join the one above."""


@dataclass(frozen=True, eq=False)
class Phantom:
    """One synthetic scan (int16 HU), its labels (uint8) and, where a lesion or metal was planted, its mask."""

    image: Volume
    labels: Volume
    pathology: Volume | None
    metadata: dict[str, str | int | float]


@dataclass(frozen=True)
class Person:
    """What differs between patients. scale: of the reference body along x, y, z; lengths in mm, angles in degrees."""

    age: int
    sex: str
    scale: tuple[float, float, float]
    fat: float
    kyphosis: float
    heart: float
    aorta: float
    domes: tuple[float, float]
    fissures: tuple[float, float, float]
    lung: float
    trabecular: float
    angles: tuple[float, float, float]
    shift: tuple[float, float, float]


@dataclass(frozen=True)
class Scanner:
    """How a scan was taken: spacing and kernel width in mm, noise in HU, HU of blood before and after the lungs."""

    name: str
    spacing: tuple[float, float, float]
    noise: float
    kernel: float
    flipped: bool
    right_blood: float
    left_blood: float
    enhanced: float


@cache
def _ids() -> dict[str, int]:
    return {organ.name: organ.id for organ in load_label_set("thorax17").organs}


def _person(rng: np.random.Generator) -> Person:
    sex = "FM"[int(rng.integers(2))]
    age = int(np.clip(rng.normal(60, 15), 22, 90))
    size = rng.normal(0.965 if sex == "M" else 0.905, 0.025)
    x, y, z = np.clip(size * rng.normal(1, [0.02, 0.03, 0.02]), 0.85, [1.03, 0.97, 1.02])
    return Person(
        age=age,
        sex=sex,
        scale=(float(x), float(y), float(z)),
        fat=float(np.clip(rng.gamma(4, 2.4), 4, 16)),
        kyphosis=float(rng.normal(0.0010, 0.00015) + max(0, age - 60) * 0.00001),
        heart=float(rng.normal(1.0, 0.05) + max(0, age - 70) * 0.002),
        aorta=float(rng.normal(0.95, 0.05) + (age - 40) * 0.003),
        domes=(float(rng.normal(-92, 6)), float(rng.normal(-103, 6))),
        fissures=(float(rng.normal(0, 6)), float(rng.normal(0, 6)), float(rng.normal(-36, 5))),
        lung=float(rng.normal(-852, 14) - max(0, age - 65) * 0.8),
        trabecular=float(np.clip(290 - 1.9 * age + rng.normal(0, 20), 100, 280)),
        angles=tuple(float(a) for a in rng.normal(0, [1.5, 1.0, 2.0])),  # type: ignore[arg-type]
        shift=tuple(float(a) for a in rng.uniform(-1, 1, 3) * [6, 4, 4]),  # type: ignore[arg-type]
    )


def _scanner(rng: np.random.Generator, planted: str) -> Scanner:
    name, noise, kernel = [
        ("Scanner A", 14, 1.6),
        ("Scanner B", 20, 1.3),
        ("Scanner C", 25, 1.1),
        ("Scanner D", 17, 1.9),
    ][int(rng.integers(4))]
    edge = float(np.round(rng.uniform(2.5, 3.2), 2))
    slices = float(rng.choice([3.0, 3.5, 4.0, 5.0]))
    # Mostly portal venous and arterial scans, some without contrast medium.
    phase = rng.choice(3, p=[0.25, 0.35, 0.40])
    right, left = [(42, 42), (rng.uniform(200, 300), rng.uniform(250, 350)), (rng.uniform(130, 170),) * 2][phase]
    if planted == "contrast phase":
        phase, right, left = 1, 620.0, 70.0
    return Scanner(
        name=name,
        spacing=(edge, edge, slices),
        noise=noise * float(rng.uniform(0.85, 1.2)) * (4.0 if planted == "low dose" else 1.0),
        kernel=kernel,
        flipped=bool(rng.random() < 0.75),
        right_blood=float(right),
        left_blood=float(left),
        enhanced=float([0, 35, 60][phase]),
    )


class Canvas:
    """The scan being painted: reference coordinates of every voxel, HU and labels, in RAS order (I, J, K)."""

    def __init__(self, person: Person, scanner: Scanner):
        spacing = np.array(scanner.spacing)
        low, high = _field_of_view(person)
        shape = np.ceil((high - low) / spacing).astype(int)
        self.affine = np.diag([*spacing, 1.0])
        self.affine[:3, 3] = low
        self.soft = 0.9 * scanner.spacing[0]
        posed = _pose(person)
        self.to_reference = np.linalg.inv(posed) @ self.affine
        self.to_index = np.linalg.inv(self.to_reference)
        i, j, k = (np.arange(n, dtype=float) for n in shape)
        rows = self.to_reference[:3]
        self.xyz = [
            (row[0] * i + row[3])[:, None, None] + (row[1] * j)[None, :, None] + (row[2] * k)[None, None, :]
            for row in rows
        ]
        self.world_y = (low[1] + spacing[1] * j)[None, :, None]
        self.hu = np.full(shape, AIR, float)
        self.labels = np.zeros(shape, np.uint8)

    def box(self, low: Point, high: Point) -> tuple[slice, ...]:
        """Voxels that a box of reference coordinates touches."""
        corners = np.array(
            [[x, y, z, 1] for x in (low[0], high[0]) for y in (low[1], high[1]) for z in (low[2], high[2])]
        )
        index = corners @ self.to_index[:3].T
        first = np.clip(np.floor(index.min(axis=0)).astype(int), 0, self.hu.shape)
        last = np.clip(np.ceil(index.max(axis=0)).astype(int) + 1, 0, self.hu.shape)
        return tuple(slice(a, b) for a, b in zip(first, last, strict=True))

    def at(self, box: tuple[slice, ...]) -> list[np.ndarray]:
        return [axis[box] for axis in self.xyz]

    def paint(
        self, box: tuple[slice, ...], distance: np.ndarray, hu: float | np.ndarray, label: int | None = None
    ) -> None:
        """Lay `hu` where the signed distance (mm) is negative; the edge is one voxel soft. label None keeps labels."""
        share = np.clip(0.5 - distance / self.soft, 0, 1)
        region = self.hu[box]
        region += share * (hu - region)
        if label is not None:
            self.labels[box][distance < 0] = label

    def ellipsoid(self, centre: Point, radii: Point, hu: float, label: int | None = None) -> None:
        """Radii in mm along x, y, z."""
        c, r = np.asarray(centre, float), np.asarray(radii, float)
        box = self.box(c - r - 4, c + r + 4)
        scaled = sum(((axis - m) / s) ** 2 for axis, m, s in zip(self.at(box), c, r, strict=True))
        norm = np.sqrt(scaled)
        self.paint(box, (norm - 1) * r.mean(), hu, label)

    def tube(self, points: np.ndarray, radii: float | np.ndarray, hu: float, label: int | None = None) -> None:
        """A chain of capsules along points (n, 3) with radii in mm, one or one a point."""
        r = np.broadcast_to(np.asarray(radii, float), len(points))
        for a, b, ra, rb in zip(points[:-1], points[1:], r[:-1], r[1:], strict=True):
            reach = max(ra, rb) + 4
            box = self.box(np.minimum(a, b) - reach, np.maximum(a, b) + reach)
            along = np.asarray(b - a, float)
            offset = [axis - m for axis, m in zip(self.at(box), a, strict=True)]
            t = np.clip(sum(o * d for o, d in zip(offset, along, strict=True)) / max(float(along @ along), 1e-6), 0, 1)
            apart = np.sqrt(sum((o - t * d) ** 2 for o, d in zip(offset, along, strict=True)))
            self.paint(box, apart - (ra + t * (rb - ra)), hu, label)


def _field_of_view(person: Person) -> tuple[np.ndarray, np.ndarray]:
    """Corners in world mm that hold the body and the table."""
    x, y, z = person.scale
    wide = min(154 * x + person.fat + 12, 188)
    front = 103 * y + person.fat + (34 if person.sex == "F" else 14)
    low = np.array([-wide, -118 * y - person.fat - 24, -164 * z])
    high = np.array([wide, min(front, low[1] + 276), 134 * z])
    return low, high


def _pose(person: Person) -> np.ndarray:
    """Reference body → world: scaled, turned about x, y and z, and moved."""
    a, b, c = np.radians(person.angles)
    turn_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    turn_y = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    turn_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn_z @ turn_y @ turn_x @ np.diag(person.scale)
    matrix[:3, 3] = person.shift
    return matrix


class Anatomy:
    """A person's reference shapes as functions of z (mm)."""

    def __init__(self, person: Person):
        self.person = person

    def spine(self, z: np.ndarray | float) -> np.ndarray:
        """y of the vertebral bodies' centres: kyphosis above, lordosis below."""
        return -57 + self.person.kyphosis * (np.asarray(z, float) + 40) ** 2

    def cavity(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Half width, front and back of the rib cage's inside."""
        width, front, back = (np.interp(z, CAVITY_Z, p) for p in (CAVITY_WIDTH, CAVITY_FRONT, CAVITY_BACK))
        return width, front, back + self.spine(z)

    def body(self, z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Half width, front and back of the muscles' outside, under the fat."""
        width, front, back = (np.interp(z, BODY_Z, p) for p in (BODY_WIDTH, BODY_FRONT, BODY_BACK))
        return width, front, back + self.spine(z)

    def wall(self, angle: np.ndarray, z: np.ndarray, side: int, out: float) -> np.ndarray:
        """Points (n, 3) `out` mm outside the cavity; angle 0 at the back, π in front."""
        width, front, back = self.cavity(z)
        power = 2 / SQUARENESS
        x = side * (width + out) * np.abs(np.sin(angle)) ** power
        depth = (front - back) / 2 + out
        y = (front + back) / 2 - depth * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power
        return np.stack([x, y, z], axis=-1)


def _outline(xyz: list[np.ndarray], profile: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
    """Signed distance (mm, along the ray from the centre) to a superellipse (half width, front, back) in each slice."""
    width, front, back = profile
    x, y = np.abs(xyz[0]), np.abs(xyz[1] - (front + back) / 2)
    norm = ((x / width) ** SQUARENESS + (y / ((front - back) / 2)) ** SQUARENESS) ** (1 / SQUARENESS)
    return np.hypot(x, y) * (1 - 1 / np.maximum(norm, 0.05))


def _whole(canvas: Canvas) -> tuple[slice, ...]:
    return tuple(slice(0, n) for n in canvas.hu.shape)


def _paint_body(canvas: Canvas, anatomy: Anatomy) -> None:
    """Table, skin, fat and muscle: everything that the rest lies in."""
    person, whole = anatomy.person, _whole(canvas)
    xyz = canvas.at(whole)
    back = float(canvas.affine[1, 3]) + 20
    muscle = _outline(xyz, anatomy.body(xyz[2]))
    skin = muscle - person.fat
    if person.sex == "F":
        for side in (-1, 1):
            skin = np.minimum(skin, _breast(xyz, side))
    skin = np.maximum(skin, back - canvas.world_y)
    _paint_table(canvas, back)
    canvas.paint(whole, skin, SKIN)
    canvas.paint(whole, skin + 2.5, FAT)
    if person.sex == "F":
        _paint_glands(canvas)
    canvas.paint(whole, np.maximum(muscle, skin + 4), MUSCLE)


def _breast(xyz: list[np.ndarray], side: int) -> np.ndarray:
    x, y, z = (xyz[0] - side * 72) / 56, (xyz[1] - 84) / 36, (xyz[2] + 38) / 52
    return (np.sqrt(x * x + y * y + z * z) - 1) * 42


def _paint_glands(canvas: Canvas) -> None:
    for side in (-1, 1):
        canvas.ellipsoid((side * 74, 98, -40), (30, 14, 28), 10)


def _paint_table(canvas: Canvas, top: float) -> None:
    """A curved carbon shell (thin, −150 HU) filled with foam, lying still while the patient's pose varies."""
    i = np.arange(canvas.hu.shape[0], dtype=float)[:, None, None]
    x = i * canvas.affine[0, 0] + canvas.affine[0, 3]
    whole = _whole(canvas)
    depth = np.broadcast_to(np.abs(canvas.world_y - (top - 9) - x * x * 0.0004) - 9, canvas.hu.shape)
    canvas.paint(whole, depth, -150)
    canvas.paint(whole, depth + 5, -930)


def _paint_cavity(canvas: Canvas, anatomy: Anatomy, scanner: Scanner) -> None:
    """Inside the ribs: fat, the abdominal organs under the diaphragm, and the lungs with their lobes above it."""
    box = canvas.box((-140, -130, -200), (140, 100, 104))
    xyz = canvas.at(box)
    inside = _outline(xyz, anatomy.cavity(xyz[2]))
    inside = np.maximum(inside, xyz[2] - 96)
    canvas.paint(box, inside, FAT)
    above = _above_diaphragm(xyz, anatomy.person)
    _paint_abdomen(canvas, box, (inside, above), scanner)
    _paint_lungs(canvas, box, np.maximum(inside + 2, 2 - above), anatomy)


def _above_diaphragm(xyz: list[np.ndarray], person: Person) -> np.ndarray:
    """Signed height (mm) over the two domes of the diaphragm."""
    x, y, z = xyz
    right, left = person.domes
    depth = ((y + 4) / 92) ** 2
    over_right = right - 72 * (((x - 60) / 72) ** 2 + depth)
    over_left = left - 68 * (((x + 62) / 72) ** 2 + depth)
    dome = np.maximum(np.maximum(over_right, over_left), -172)
    return (z - dome) * 0.75


def _paint_abdomen(
    canvas: Canvas, box: tuple[slice, ...], bounds: tuple[np.ndarray, np.ndarray], scanner: Scanner
) -> None:
    inside, above = bounds
    x, y, _ = canvas.at(box)
    under = np.maximum(inside + 3, above + 3)
    canvas.paint(box, np.maximum(inside + 1, np.abs(above) - 2), MUSCLE)
    liver = np.maximum(under, np.maximum(-32 - x + 0.25 * (y - 30), -62 - y))
    canvas.paint(box, liver, 58 + scanner.enhanced)
    spleen = np.maximum(under, np.maximum(x + 62, y + 8))
    canvas.paint(box, spleen, 50 + scanner.enhanced * 1.2)
    stomach = np.maximum(under + 4, np.maximum(x + 40, 2 - y))
    canvas.paint(box, stomach, 20)
    canvas.paint(box, np.maximum(stomach + 4, 42 - y), -950)


def _paint_lungs(canvas: Canvas, box: tuple[slice, ...], bounds: np.ndarray, anatomy: Anatomy) -> None:
    """Lobes are cut by the oblique fissures of both sides and the right horizontal one."""
    x, y, z = canvas.at(box)
    ids, (left_shift, right_shift, horizontal) = _ids(), anatomy.person.fissures
    # The mediastinum is narrow in front, where the lungs nearly meet, and wide around trachea and hila.
    middle = np.interp(y, [-60, -20, 20, 60], [20, 22, 18, 5])
    lung = np.maximum(bounds, (middle - np.abs(x)) * 0.9)
    hu = anatomy.person.lung - 0.35 * y
    canvas.paint(box, lung, hu)
    oblique = z - (35 - (y + 78) * 1.12 + 0.06 * (np.abs(x) - 60) + np.where(x > 0, right_shift, left_shift))
    flat = z - (horizontal - 0.1 * (y - 30))
    left = np.where(oblique > 0, ids["lung_upper_lobe_left"], ids["lung_lower_lobe_left"])
    right = np.where(
        oblique < 0,
        ids["lung_lower_lobe_right"],
        np.where(flat > 0, ids["lung_upper_lobe_right"], ids["lung_middle_lobe_right"]),
    )
    lobes = np.where(x > 0, right, left)
    inside = lung < 0
    canvas.labels[box][inside] = lobes[inside]
    gap = np.minimum(np.abs(oblique) * 0.67, np.where((x > 0) & (oblique > 0), np.abs(flat), 99))
    canvas.hu[box] += np.where(inside, 190 * np.exp(-((gap / canvas.soft) ** 2) * 2), 0)


def _paint_lung_vessels(canvas: Canvas, rng: np.random.Generator, blood: float) -> None:
    """Branches from the hila, splatted by their cross section and blurred, only where lung is."""
    points, areas = _branches(rng)
    index = points @ canvas.to_index[:3, :3].T + canvas.to_index[:3, 3]
    cell = np.rint(index).astype(int)
    kept = ((cell >= 0) & (cell < canvas.hu.shape)).all(axis=1)
    flat = np.ravel_multi_index(tuple(cell[kept].T), canvas.hu.shape)
    voxel = abs(np.linalg.det(canvas.affine[:3, :3]))
    share = np.bincount(flat, weights=areas[kept] / voxel, minlength=canvas.hu.size)
    share = ndimage.gaussian_filter(share.reshape(canvas.hu.shape), 0.55)
    share = np.where(canvas.labels > 0, np.minimum(share, 1), 0)
    canvas.hu += share * (blood - canvas.hu)


def _branches(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sampled points (n, 3) of random vessel trees of both lungs, and the volume in mm³ that each stands for."""
    tips = rng.normal(size=(520, 3))
    tips /= np.linalg.norm(tips, axis=1, keepdims=True)
    tips *= np.array([62, 72, 100]) * rng.uniform(0.45, 1.0, (520, 1))
    side = np.where(np.arange(520) % 2, 1.0, -1.0)
    root = np.stack([side * 32, np.full(520, -14.0), np.full(520, -22.0)], axis=1)
    tips += np.stack([side * 62, np.full(520, -8.0), np.full(520, -26.0)], axis=1)
    bend = (root + tips) / 2 + rng.normal(0, 9, (520, 3))
    radius = rng.uniform(1.4, 3.0, 520)
    t = np.linspace(0.12, 1, 70)[None, :, None]
    curve = (1 - t) ** 2 * root[:, None] + 2 * t * (1 - t) * bend[:, None] + t**2 * tips[:, None]
    length = np.linalg.norm(np.diff(curve, axis=1), axis=2).mean(axis=1)
    thin = radius[:, None] * (1.05 - 0.8 * t[..., 0])
    return curve.reshape(-1, 3), (np.pi * thin**2 * length[:, None]).ravel()


def _paint_mediastinum(canvas: Canvas, anatomy: Anatomy, scanner: Scanner) -> None:
    """Great vessels, airways, heart and thyroid, each after the fat around it."""
    ids, spine = _ids(), anatomy.spine
    heights = np.arange(134, -185, -16, dtype=float)
    gullet = np.stack([np.full_like(heights, -3), spine(heights) + 25, heights], axis=1)
    canvas.tube(gullet, 9, FAT, 0)
    _paint_vessels_beside_heart(canvas, scanner)
    _paint_heart(canvas, anatomy.person, scanner)
    canvas.tube(gullet, 6.5, 38)
    path, radius = _aorta(anatomy)
    # The root lies within the heart: only what has left it is wrapped in fat.
    canvas.tube(path[2:], radius[2:] + 3, FAT, 0)
    _paint_heart_chambers(canvas, anatomy.person, scanner)
    canvas.tube(path, radius, 45, ids["aorta"])
    canvas.tube(path, radius - 1.2, scanner.left_blood, ids["aorta"])
    _paint_aortic_plaques(canvas, path, radius, anatomy.person)
    _paint_airways(canvas, anatomy)


def _paint_vessels_beside_heart(canvas: Canvas, scanner: Scanner) -> None:
    """Pulmonary arteries, superior vena cava, the arch's branches and the veins into the left atrium."""
    arteries = [
        ([(-16, 40, -34), (-22, 30, -12), (-20, 14, -4), (-34, -2, -2), (-58, -14, -8)], [13, 13, 12, 10, 7]),
        ([(-20, 14, -4), (8, 2, -8), (34, 0, -14), (58, -6, -22)], [11, 9.5, 9, 7]),
        ([(24, 20, 66), (27, 14, 30), (27, 8, -8), (26, 6, -36)], [8, 9, 9.5, 10]),
    ]
    for points, radii in arteries:
        path, radius = np.array(points, float), np.array(radii, float)
        canvas.tube(path, radius + 3, FAT, 0)
        canvas.tube(path, radius, scanner.right_blood)
    for points in (
        [(2, 18, 38), (18, 10, 72), (26, 6, 130)],
        [(-12, 6, 44), (-20, 4, 80), (-25, 6, 130)],
        [(-22, -8, 44), (-32, -6, 72), (-62, 6, 92)],
    ):
        canvas.tube(np.array(points, float), 8, FAT, 0)
        canvas.tube(np.array(points, float), 5, scanner.left_blood)
    for side in (-1, 1):
        for y, z in ((4, -12), (-32, -62)):
            path = np.array([(side * 20, -12, -40), (side * 62, y, z)], float)
            canvas.tube(path, 8.6, scanner.left_blood, _ids()["pulmonary_vein"])


def _paint_heart(canvas: Canvas, person: Person, scanner: Scanner) -> None:
    """The heart's outside with its fat: ventricles, right atrium, left atrium; everything inside is `heart`."""
    muscle, heart = 48 + scanner.enhanced, _ids()["heart"]
    ventricles, right, left = (np.array(r) * person.heart for r in ((60, 42, 42), (28, 30, 36), (32, 19, 25)))
    # No fat around the left atrium: it would cut off the veins that enter there.
    _turned_ellipsoid(canvas, HEART, ventricles + 5, (FAT, 0))
    canvas.ellipsoid((26, 14, -56), right + 5, FAT, 0)
    _turned_ellipsoid(canvas, HEART, ventricles, (muscle, heart))
    canvas.ellipsoid((26, 14, -56), right, muscle, heart)
    canvas.ellipsoid((0, -9, -40), left, muscle, heart)


HEART = np.array([-18.0, 22.0, -64.0])
_AXES = np.linalg.qr(np.array([[-0.72, 0.5, 0.0], [0.48, 0.8, 0.0], [-0.5, 0.2, 1.0]]))[0]
HEART_AXES = -_AXES * np.sign(_AXES[0, 0])
"""Columns: towards the apex (left, forward, down), across, and up."""


def _turned_ellipsoid(canvas: Canvas, centre: np.ndarray, radii: np.ndarray, fill: tuple[float, int | None]) -> None:
    reach = radii.max() + 4
    box = canvas.box(centre - reach, centre + reach)
    offset = [axis - m for axis, m in zip(canvas.at(box), centre, strict=True)]
    norm = np.zeros_like(offset[0])
    for column, r in zip(HEART_AXES.T, radii, strict=True):
        norm += (sum(o * c for o, c in zip(offset, column, strict=True)) / r) ** 2
    canvas.paint(box, (np.sqrt(norm) - 1) * radii.mean(), *fill)


def _paint_heart_chambers(canvas: Canvas, person: Person, scanner: Scanner) -> None:
    """Blood in the four chambers; labels stay `heart`."""
    s = person.heart
    _turned_ellipsoid(
        canvas, HEART + np.array([-16, -4, 0]) * s, np.array([34, 20, 20]) * s, (scanner.left_blood, None)
    )
    _turned_ellipsoid(
        canvas, HEART + np.array([10, 16, -4]) * s, np.array([34, 15, 24]) * s, (scanner.right_blood, None)
    )
    canvas.ellipsoid((27, 13, -56), np.array([23, 25, 30]) * s, scanner.right_blood)
    canvas.ellipsoid((0, -9, -40), np.array([29, 16, 22]) * s, scanner.left_blood)


def _aorta(anatomy: Anatomy) -> tuple[np.ndarray, np.ndarray]:
    """Centreline (n, 3) and radii: root, ascending part, arch to the left and back, down beside the spine."""
    bow = [
        (0, 17, -30),
        (6, 22, -16),
        (13, 24, 2),
        (11, 23, 18),
        (2, 18, 31),
        (-11, 8, 38),
        (-20, -7, 39),
        (-25, -24, 32),
    ]
    heights = np.arange(16, -190, -18, dtype=float)
    down = np.stack(
        [np.interp(heights, [-190, -60, 16], [-14, -23, -26]), anatomy.spine(heights) + 15, heights], axis=1
    )
    path = np.concatenate([np.array(bow, float), down])
    radii = np.concatenate([[16, 16, 15.5, 15, 14, 13, 12.5, 12], np.linspace(12, 10.5, len(heights))])
    return path, (radii * anatomy.person.aorta)


def _paint_aortic_plaques(canvas: Canvas, path: np.ndarray, radius: np.ndarray, person: Person) -> None:
    """Calcified plaques of the wall, more of them with age."""
    rng = np.random.default_rng([person.age, int(person.fat * 1e6)])
    for _ in range(max(0, (person.age - 50) // 4)):
        at = int(rng.integers(3, len(path) - 1))
        turn = rng.uniform(0, 2 * np.pi)
        centre = path[at] + (radius[at] - 1.5) * np.array([np.cos(turn), np.sin(turn), 0]) + [0, 0, rng.uniform(-8, 8)]
        canvas.ellipsoid(centre, (2.2, 2.2, 4), 650)


def _paint_airways(canvas: Canvas, anatomy: Anatomy) -> None:
    """Trachea and main bronchi with their wall (label trachea), and the thyroid in front of them."""
    ids, spine = _ids(), anatomy.spine
    heights = np.linspace(150, 2, 9)
    pipe = np.stack([np.interp(heights, [2, 40, 90], [4, 6, 0]), spine(heights) + 41, heights], axis=1)
    carina = pipe[-1]
    right, left = (np.array([carina, carina + np.array(to)]) for to in ([36, -4, -24], [-46, -5, -27]))
    paths = [(pipe, 10.0), (right, 8.5), (left, 8.0)]
    for path, radius in paths:
        canvas.tube(path, radius + 2.5, FAT, 0)
    _paint_thyroid(canvas, pipe)
    for path, radius in paths:
        canvas.tube(path, radius, 20, ids["trachea"])
    for path, radius in paths:
        canvas.tube(path, radius - 1.8, AIR, ids["trachea"])


def _paint_thyroid(canvas: Canvas, pipe: np.ndarray) -> None:
    gland = _ids()["thyroid_gland"]
    y = float(np.interp(108, pipe[::-1, 2], pipe[::-1, 1]))
    for side in (-1, 1):
        canvas.ellipsoid((side * 18, y + 2, 108), (11, 12, 23), 112, gland)
    canvas.tube(np.array([(-14, y + 11, 100), (0, y + 14, 100), (14, y + 11, 100)], float), 6, 112, gland)


def _paint_spine(canvas: Canvas, anatomy: Anatomy) -> None:
    """Bodies and processes (label vertebraes), discs and canal (no label), and the muscles beside the processes."""
    ids = _ids()
    box = canvas.box((-58, -135, -200), (58, 10, 150))
    x, y, z = canvas.at(box)
    depth = y - anatomy.spine(z)
    levels = np.concatenate([[129, 110, 91], RIB_Z, [-203]])[::-1]
    number = np.interp(z, levels, np.arange(len(levels)))
    height = np.interp(z, levels, np.gradient(levels))
    rise = (number - np.rint(number)) * height
    _paint_back_muscles(canvas, box, depth)
    body = np.sqrt((x / 19) ** 2 + (depth / 16) ** 2) * 17 - 17
    canvas.paint(box, body - 3, FAT, 0)
    arch = np.abs(np.hypot(x, depth + 26) - 12) - 4.5
    tilted = np.maximum(np.abs(rise + (depth + 43) * -0.4) - 4, 0)
    spinous = (
        np.sqrt(np.maximum(np.abs(x) - 1.5, 0) ** 2 + np.maximum(np.abs(depth + 43) - 7, 0) ** 2 + tilted**2) - 4.5
    )
    across = np.abs(x) - 22
    transverse = np.sqrt(np.maximum(np.abs(across) - 12, 0) ** 2 + (depth + 31) ** 2 + (rise - 1) ** 2) - 6.2
    bone = np.minimum(np.minimum(arch, spinous), transverse)
    disc = 2.0 - (height / 2 - np.abs(rise))
    bone = np.minimum(bone, np.maximum(body, disc))
    canvas.paint(box, np.maximum(body + 1, -disc), 85)
    canvas.paint(box, bone, 560, ids["vertebraes"])
    canvas.paint(box, bone + 2.2, anatomy.person.trabecular)
    canvas.paint(box, np.hypot(x, depth + 26) - 7.5, 25, 0)


def _paint_back_muscles(canvas: Canvas, box: tuple[slice, ...], depth: np.ndarray) -> None:
    x = canvas.xyz[0][box]
    for side, name in ((-1, "autochthon_left"), (1, "autochthon_right")):
        offset = np.abs((x - side * 24) / 21) ** 3 + np.abs((depth + 44) / 14) ** 3
        distance = (np.cbrt(offset) - 1) * 16
        canvas.paint(box, distance - 2, FAT)
        canvas.paint(box, distance, 55, _ids()[name])


def _paint_rib_cage(canvas: Canvas, anatomy: Anatomy) -> None:
    """Ribs, cartilages and sternum; shoulder blades and collar bones, which have no label."""
    ids, person = _ids(), anatomy.person
    ribs = list(_rib_paths(anatomy))
    cartilage = CARTILAGE + max(0, person.age - 45) * 2.0
    for side in (-1, 1):
        clavicle = np.array([(side * 26, 60, 52), (side * 70, 46, 78), (side * 118, 6, 100)], float)
        canvas.tube(clavicle, 7, 560)
        canvas.tube(clavicle, 4, person.trabecular)
        _paint_shoulder_blade(canvas, anatomy, side)
    for _, gristle in ribs:
        if len(gristle):
            canvas.tube(gristle, 6.6, cartilage, ids["costal_cartilages"])
    for bone, _ in ribs:
        canvas.tube(bone, 6.4, 620, ids["ribs"])
    for bone, _ in ribs:
        canvas.tube(bone, 3.9, person.trabecular, ids["ribs"])
    _paint_sternum(canvas, anatomy)


def _rib_paths(anatomy: Anatomy) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Centrelines of each rib's bone and, for ribs 1 to 10, of its cartilage, right and left."""
    for side in (-1, 1):
        above = np.empty((0, 3))
        for rib, (z, drop, end) in enumerate(zip(RIB_Z, RIB_DROP, RIB_END, strict=True)):
            share = np.linspace(0, 1, 15, dtype=float)
            angle = 0.16 + (end - 0.16) * share
            bone = anatomy.wall(angle, z - drop * share**1.15, side, 8.0)
            neck = np.array([[side * 17, anatomy.spine(float(z)) - 8, z + 5]], float)
            bone = np.concatenate([neck, bone])
            gristle = _cartilage(anatomy, (rib, side), bone[-1], above)
            yield bone, gristle
            above = gristle


def _cartilage(anatomy: Anatomy, which: tuple[int, int], start: np.ndarray, above: np.ndarray) -> np.ndarray:
    rib, side = which
    share = np.linspace(0, 1, 8, dtype=float)
    if rib < len(STERNAL_Z):
        angle = RIB_END[rib] + (0.985 * np.pi - RIB_END[rib]) * share
        return anatomy.wall(angle, start[2] + (STERNAL_Z[rib] - start[2]) * share**1.5, side, 8.0)
    if rib < 10:
        goal = above[len(above) // 2]
        return start + (goal - start) * share[:, None]
    return np.empty((0, 3))


def _paint_sternum(canvas: Canvas, anatomy: Anatomy) -> None:
    """Manubrium, body and xiphoid process along the front of the cavity."""
    box = canvas.box((-40, 20, -110), (40, 110, 62))
    x, y, z = canvas.at(box)
    width = np.interp(z, [-96, -80, -60, -10, 10, 18, 46], [7, 10, 20, 18, 17, 27, 30])
    level = y - np.interp(z, CAVITY_Z, CAVITY_FRONT) - 8.5
    corner = [
        np.maximum(np.abs(x) - width + 5, 0),
        np.maximum(np.abs(level) - 3, 0),
        np.maximum(np.abs(z + 23) - 64, 0),
    ]
    distance = np.sqrt(sum(c * c for c in corner)) - 5
    canvas.paint(box, distance, 480, _ids()["sternum"])
    canvas.paint(box, distance + 2.5, anatomy.person.trabecular * 0.9)


def _paint_shoulder_blade(canvas: Canvas, anatomy: Anatomy, side: int) -> None:
    """A thin plate behind the upper ribs, turned outwards as with raised arms."""
    for z in np.arange(-40, 70, 8):
        share = (z + 40) / 110
        angle = np.linspace(0.30 + 0.05 * (1 - share), 0.36 + 0.16 * share, 5) * np.pi
        canvas.tube(anatomy.wall(angle, np.full(5, z, float), side, 22.0), 3.2, 480)


def _white_noise(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal draws; in float32, which numpy draws twice as fast, and exactly, on every processor."""
    return rng.standard_normal(shape, np.float32).astype(float)


def _finish(canvas: Canvas, scanner: Scanner, rng: np.random.Generator) -> None:
    """The reconstruction kernel's blur and its noise, which is correlated within a slice."""
    width = scanner.kernel / scanner.spacing[0]
    canvas.hu = ndimage.gaussian_filter(canvas.hu, (width * 0.6, width * 0.6, 0))
    noise = ndimage.gaussian_filter(_white_noise(rng, canvas.hu.shape), (width, width, 0))
    canvas.hu += noise * (scanner.noise / noise.std())


def _paint_effusion(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Fluid along the back of one pleural space, the lung above it pressed together; fluid has no label."""
    side = int(rng.choice([-1, 1]))
    x, y, z = canvas.xyz
    # Higher towards the base and along the chest wall, where a meniscus climbs.
    level = rng.uniform(-46, -34) - 0.22 * (z + 60) + 0.004 * np.maximum(side * x - 60, 0) ** 2
    lung = _lungs(canvas) & (side * x > 0)
    fluid = lung & (y < level)
    pressed = lung & ~fluid & (y < level + 16)
    canvas.hu += np.where(pressed, (1 - (y - level) / 16) * (-150 - canvas.hu), 0)
    canvas.hu[fluid] = 12
    canvas.labels[fluid] = 0
    return fluid


def _paint_consolidation(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Airless lung with air bronchograms in a part of one lobe; it keeps the lobe's label."""
    lobe = _ids()[str(rng.choice([name for name in _ids() if name.startswith("lung_")]))]
    x, y, z = canvas.xyz
    within = canvas.labels == lobe
    centre = [float(np.median(axis[within])) for axis in canvas.xyz] + rng.normal(0, 8, 3)
    radius = rng.uniform(36, 44)
    ragged = ndimage.gaussian_filter(_white_noise(rng, canvas.hu.shape), 2.5)
    apart = np.sqrt((x - centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2)
    distance = apart - radius - ragged / ragged.std() * 6
    dense = within & (distance < 0)
    airways = ndimage.gaussian_filter(_white_noise(rng, canvas.hu.shape), (0.8, 0.8, 1.5))
    filling = np.where(airways > 2.2 * airways.std(), -500, 38)
    canvas.hu += np.where(within, np.clip(0.5 - distance / 10, 0, 1) * (filling - canvas.hu), 0)
    return dense


def _paint_metal(canvas: Canvas, anatomy: Anatomy, rng: np.random.Generator) -> np.ndarray:
    """A pacemaker under the left collar bone with its lead into the right ventricle, and the streaks around both."""
    before = canvas.labels.copy()
    marked = 255
    height = np.array([rng.uniform(14, 26)], float)
    pocket = anatomy.wall(np.array([0.78 * np.pi]), height, -1, 21.0)[0]
    canvas.ellipsoid(pocket, (24, 9, 22), 3071, marked)
    lead = [pocket, (-60, 30, 78), (0, 30, 74), (25, 18, 50), (27, 10, -20), (20, 20, -60), (-20, 34, -78)]
    canvas.tube(np.array(lead, float), 2.6, 3071, marked)
    metal = canvas.labels == marked
    canvas.labels[:] = before
    _paint_streaks(canvas, metal, rng)
    return metal


def _paint_streaks(canvas: Canvas, metal: np.ndarray, rng: np.random.Generator) -> None:
    """Bright and dark rays within each slice, stronger where the slice holds more metal, fading with distance."""
    i, j = np.meshgrid(*(np.arange(n, dtype=float) for n in metal.shape[:2]), indexing="ij")
    edge = canvas.affine[0, 0]
    for k in np.flatnonzero(metal.any(axis=(0, 1))):
        at = np.argwhere(metal[:, :, k]).mean(axis=0)
        away = np.hypot(i - at[0], j - at[1]) * edge
        angle = np.arctan2(j - at[1], i - at[0])
        rays = sum(np.cos(n * angle + rng.uniform(0, 2 * np.pi)) for n in (3, 7, 11, 16))
        strength = 55 * np.sqrt(metal[:, :, k].sum() * edge**2 / 30)
        faded = strength * rays * np.exp(-away / 55)
        canvas.hu[:, :, k] += np.where(metal[:, :, k] | (canvas.hu[:, :, k] < -990), 0, faded)


def _lungs(canvas: Canvas) -> np.ndarray:
    return np.isin(canvas.labels, [number for name, number in _ids().items() if name.startswith("lung_")])


def _crop(canvas: Canvas) -> None:
    """Cut the field of view: the bases and a strip of the right side were never scanned."""
    kept, first = round(canvas.hu.shape[0] * 0.82), round(canvas.hu.shape[2] * 0.34)
    canvas.hu, canvas.labels = canvas.hu[:kept, :, first:], canvas.labels[:kept, :, first:]
    canvas.affine[2, 3] += first * canvas.affine[2, 2]


def _plant(canvas: Canvas, anatomy: Anatomy, planted: str, rng: np.random.Generator) -> np.ndarray | None:
    """The mask of what was painted into the patient, if anything."""
    if planted == "pleural effusion":
        return _paint_effusion(canvas, rng)
    if planted == "consolidation":
        return _paint_consolidation(canvas, rng)
    if planted == "metal":
        return _paint_metal(canvas, anatomy, rng)
    return None


def generate(seed: int, planted: str = "") -> Phantom:
    """The phantom of a seed: equal arguments, equal bits. planted: nothing, or one of PLANTED.

    What is planted never moves the anatomy: seed s with and without it shows the same person.
    """
    if planted not in ("", *PLANTED):
        raise InputError("what is planted must be known", repr(planted), ", ".join(PLANTED))
    person, scanner = _drawn(seed, planted)
    canvas, anatomy = Canvas(person, scanner), Anatomy(person)
    _paint_body(canvas, anatomy)
    _paint_cavity(canvas, anatomy, scanner)
    _paint_lung_vessels(canvas, np.random.default_rng([seed, 2]), scanner.right_blood)
    _paint_mediastinum(canvas, anatomy, scanner)
    _paint_spine(canvas, anatomy)
    _paint_rib_cage(canvas, anatomy)
    mask = _plant(canvas, anatomy, planted, np.random.default_rng([seed, 4]))
    _finish(canvas, scanner, np.random.default_rng([seed, 3]))
    if planted == "cropped field of view":
        _crop(canvas)
    arrays = [np.clip(np.rint(canvas.hu), -1024, 3071).astype(np.int16), canvas.labels]
    if mask is not None:
        arrays.append(mask.astype(np.uint8))
    if planted == "mirrored":
        # As if the header named the wrong side: voxels turn over, the affine does not.
        arrays = [array[::-1] for array in arrays]
    volumes = _oriented(arrays, canvas.affine, scanner.flipped)
    lesion = volumes[2] if mask is not None else None
    return Phantom(volumes[0], volumes[1], lesion, _metadata(person, scanner, planted))


def _drawn(seed: int, planted: str) -> tuple[Person, Scanner]:
    return _person(np.random.default_rng([seed, 0])), _scanner(np.random.default_rng([seed, 1]), planted)


def _metadata(person: Person, scanner: Scanner, planted: str) -> dict[str, str | int | float]:
    return {"age": person.age, "sex": person.sex, "scanner": scanner.name, "planted": planted}


def _oriented(arrays: Sequence[np.ndarray], affine: np.ndarray, flipped: bool) -> list[Volume]:
    """RAS arrays as stored: LPS if flipped, as scanners write them, else RAS."""
    if not flipped:
        return [Volume(np.ascontiguousarray(array), affine) for array in arrays]
    turned = affine.copy()
    turned[:2, 3] += np.diag(affine)[:2] * (np.array(arrays[0].shape[:2]) - 1)
    turned[:2, :2] *= -1
    return [Volume(np.ascontiguousarray(array[::-1, ::-1]), turned) for array in arrays]


def training_plan(cases: int, seed: int) -> list[Case]:
    """Ordinary phantoms of seeds seed, seed + 1, … to train on; keep them apart from the demo's seeds."""
    return [(f"train-{number + 1:03d}", seed + number, "") for number in range(cases)]


DEMO: dict[str, list[Case]] = {
    "reference": [(f"ref-{n:02d}", n, "") for n in range(1, 25)],
    "clinic": [
        (f"cli-{n + 1:02d}", 101 + n, planted)
        for n, planted in enumerate(
            [
                "",
                "pleural effusion",
                "",
                "metal",
                "low dose",
                "",
                "consolidation",
                "mirrored",
                "",
                "cropped field of view",
                "",
                "pleural effusion",
                "contrast phase",
                "",
                "consolidation",
                "",
            ]
        )
    ],
}
"""The demo's cohorts: ordinary patients to learn what is usual, and a clinic where some scans are not."""


def write_cohort(
    folder: Path, plan: Sequence[Case], workers: int = 2, progress: Callable[[int, int], None] | None = None
) -> None:
    """Write images/, labels/, pathology/ and cases.csv; a case whose files are there is not made again.

    A mask's voxels say which of LESIONS it is, as pathology/names.csv tells. A cases.csv that is there stays as it is:
    a user may have changed it.
    """
    for part in ("images", "labels", "pathology"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    names = "".join(f"{label},{name}\n" for label, name in enumerate(LESIONS, 1))
    write_text(folder / "pathology" / "names.csv", f"id,name\n{names}")
    rows = []
    # Not forked: what the threads of this process hold, such as DuckDB's, would be half there in its copies.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(_write_case, folder, case) for case in plan]
        for done, future in enumerate(futures, 1):
            rows.append(future.result())
            if progress:
                progress(done, len(plan))
    listed = folder / "cases.csv"
    if listed.is_file():
        return
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(listed, table.getvalue())


COLUMNS = ("case_id", "image", "label", "pathology_mask", "age", "sex", "scanner", "planted")
LESIONS = ("pleural effusion", "consolidation", "metal")
"""What of PLANTED is a thing in the patient, and so has a mask."""


def _says(mask: Path, lesion: str) -> bool:
    """Whether a mask tells which lesion it is; masks made before they did would be taken for another one."""
    try:
        return int(read_labels(mask).array.max()) == LESIONS.index(lesion) + 1
    except InputError:
        return False


def _write_case(folder: Path, case: Case) -> dict[str, str | int | float]:
    """The case's row of cases.csv, its files written unless all are there."""
    case_id, seed, planted = case
    name = f"{case_id}.nii.gz"
    files = {"image": f"images/{name}", "label": f"labels/{name}"}
    if planted in LESIONS:
        files["pathology_mask"] = f"pathology/{name}"
    there = all((folder / file).is_file() for file in files.values())
    if not there or (planted in LESIONS and not _says(folder / files["pathology_mask"], planted)):
        phantom = generate(seed, planted)
        volumes = {"image": phantom.image, "label": phantom.labels}
        if phantom.pathology is not None:
            lesion = phantom.pathology.array.astype(np.uint8) * np.uint8(LESIONS.index(planted) + 1)
            volumes["pathology_mask"] = Volume(lesion, phantom.pathology.affine)
        for part, file in files.items():
            write_volume(folder / file, volumes[part])
    person, scanner = _drawn(seed, planted)
    return {"case_id": case_id, "pathology_mask": "", **files, **_metadata(person, scanner, planted)}
