"""The embedded data set: crops of three photographs that ship inside scikit-image, and defects painted on them.

Nothing is downloaded. The photographs (brick, grass, gravel; CC0, 512 x 512, grey) are cut in two along a vertical
line: test crops come from the left part, training crops from the right part, and the gap between them belongs to
neither. Everything is drawn from fixed seeds and in units of the crop: the same scenes appear at every image size.

Four more of its photographs are surfaces to choose values on (CHOSEN_ON): made the same way, and in no other study.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

TEXTURES = ("brick", "grass", "gravel")
# For choosing values on (D33); of each photograph the middle, in grey. Nothing but the choice is reported of them.
CHOSEN_ON = ("moon", "immunohistochemistry", "hubble_deep_field", "retina")
_ALL = (*TEXTURES, *CHOSEN_ON)  # a texture's place in it is part of its seeds
SIDE = 512  # of a photograph
SEED = 20240
CROP = 96  # side of a crop in pixels of the photograph: about three bricks wide, one and a half long
PARTS = {"train": (192, 512), "test": (0, 184)}  # columns of the photograph, first included, last excluded
N_TRAIN, N_GOOD, N_DEFECT, N_OTHER = 512, 64, 16, 32
EDGE = 0.2  # a pixel belongs to the defect where the defect covers at least this share of it
SUPERSAMPLING = 4  # shapes are drawn this many times larger, then averaged down, for smooth edges


def train_crops(texture: str, size: int) -> np.ndarray:
    """Normal crops for training.

    Returns uint8 [512, size, size, 3], grey photographs repeated over the three channels.
    """
    return _crops(texture, "train", N_TRAIN, size)


def held_out_crops(texture: str, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Normal crops for testing, from the part of the photograph that training never sees.

    Returns three groups, uint8 [64 | 80 | 32, size, size, 3], no position twice: good test images, crops to paint
    defects on, and crops that stand for `other/<texture>` when another texture is the normal one.
    """
    n_paint = N_DEFECT * len(DEFECTS)
    crops = _crops(texture, "test", N_GOOD + n_paint + N_OTHER, size)
    good, paint, other = np.split(crops, [N_GOOD, N_GOOD + n_paint])
    return good, paint, other


def defects(texture: str, size: int) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Painted defects of every kind on held-out crops.

    Returns images uint8 [80, size, size, 3], masks bool [80, size, size] and the kinds, 16 of each.
    """
    _, clean, _ = held_out_crops(texture, size)
    materials = np.concatenate([held_out_crops(other, size)[2] for other in TEXTURES if other != texture])
    kinds = tuple(kind for kind in DEFECTS for _ in range(N_DEFECT))
    images, masks = np.empty_like(clean), np.empty(clean.shape[:3], dtype=bool)
    for i, kind in enumerate(kinds):
        rng = np.random.default_rng([SEED, _ALL.index(texture), len(PARTS), i])
        images[i], masks[i] = paint_defect(kind, clean[i], rng, material=materials[rng.integers(len(materials))])
    return images, masks, kinds


def paint_defect(
    kind: str, crop: np.ndarray, rng: np.random.Generator, *, material: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Paint one defect.

    `crop` and `material` (used by the kind 'foreign' only) are grey pictures, uint8 [size, size, 3]. Returns the image,
    uint8 of the same shape, and its mask, bool [size, size]. Edges are soft: a pixel is in the mask where the defect
    covers at least 20 % of it (`EDGE`); pixels covered less stay exactly as they were, so nothing outside the mask
    changes. Everything is grey, as one camera would see it: colour alone would give a defect away.
    """
    grey, other = (image.astype(np.float32).mean(axis=2) for image in (crop, material))
    coverage, paint = DEFECTS[kind](grey, rng, other)
    mask = coverage >= EDGE
    painted = np.clip(np.rint(grey + coverage * (paint - grey)), 0, 255).astype(np.uint8)
    return np.where(mask[..., None], painted[..., None], crop), mask


# --- crops -----------------------------------------------------------------------------------------------------------


@cache
def _photograph(texture: str) -> Image.Image:
    import skimage.data  # here, not above: half a second that users of other data need not wait

    image = Image.fromarray(getattr(skimage.data, texture)()).convert("L")
    left, top = (image.width - SIDE) // 2, (image.height - SIDE) // 2
    return image.crop((left, top, left + SIDE, top + SIDE))


def positions(texture: str, part: str, n: int) -> list[tuple[int, int, bool]]:
    """n different crop positions in one part of a photograph: (left, top, mirrored).

    Half of the crops are mirrored left to right: the bricks lean one way in the left part of their photograph and the
    other way in the right part, and without mirroring the two parts would differ in that.
    """
    start, stop = PARTS[part]
    columns, rows = stop - start - CROP + 1, SIDE - CROP + 1
    rng = np.random.default_rng([SEED, _ALL.index(texture), list(PARTS).index(part)])
    chosen = rng.choice(columns * rows, n, replace=False)
    mirrored = rng.random(n) < 0.5
    return [(start + int(c) % columns, int(c) // columns, bool(m)) for c, m in zip(chosen, mirrored, strict=True)]


def _crops(texture: str, part: str, n: int, size: int) -> np.ndarray:
    photograph, crops = _photograph(texture), np.empty((n, size, size, 3), dtype=np.uint8)
    for i, (left, top, mirrored) in enumerate(positions(texture, part, n)):
        # Cut first, then resize: the filter must not look at pixels outside the crop.
        crop = photograph.crop((left, top, left + CROP, top + CROP)).resize((size, size), Image.Resampling.BICUBIC)
        crops[i] = np.asarray(crop)[:, :: -1 if mirrored else 1, None]
    return crops


# --- defects: each takes (crop, rng, material) and returns coverage in 0..1 and paint in 0..255, all [size, size] ---


class _Canvas:
    """A grey drawing in units of the crop (0..1), drawn large and averaged down."""

    def __init__(self, size: int):
        self.size, self.side = size, size * SUPERSAMPLING
        self.image = Image.new("L", (self.side, self.side))
        self.draw = ImageDraw.Draw(self.image)

    def stroke(self, points: np.ndarray, widths: np.ndarray) -> None:
        """A line through points [n, 2] whose width follows widths [n], with round joints."""
        at = points * self.side
        for (x, y), radius in zip(at, widths * self.side / 2, strict=True):
            self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        for a, b, width in zip(at[:-1], at[1:], widths * self.side, strict=False):
            self.draw.line((*a, *b), fill=255, width=max(1, round(width)))

    def blob(self, points: np.ndarray) -> None:
        """A filled outline [n, 2]."""
        self.draw.polygon([tuple(p) for p in points * self.side], fill=255)

    def coverage(self, blur: float = 0.0) -> np.ndarray:
        """The drawing as float32 [size, size] in 0..1, blurred by `blur` (standard deviation, in units of the crop)."""
        image = self.image.reduce(SUPERSAMPLING).filter(ImageFilter.GaussianBlur(blur * self.size))
        return np.asarray(image, dtype=np.float32) / 255


def _outline(rng: np.random.Generator, centre: np.ndarray, radius: float, roughness: float) -> np.ndarray:
    """An irregular closed curve [96, 2] around `centre`: an ellipse whose radius wobbles at several frequencies."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    frequency = np.arange(2, 12)
    amplitude = roughness * rng.normal(size=10) / frequency**0.9
    wobble = 1 + (amplitude[:, None] * np.cos(frequency[:, None] * angle + rng.uniform(0, 2 * np.pi, (10, 1)))).sum(0)
    stretch, turn = rng.uniform(0.75, 1.0), rng.uniform(0, np.pi)
    x, y = radius * np.clip(wobble, 0.4, 1.6) * np.array([np.cos(angle) / stretch, np.sin(angle) * stretch])
    return centre + np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], axis=1)


def _noise(rng: np.random.Generator, size: int, cells: int) -> np.ndarray:
    """Smooth noise, float32 [size, size], about -1..1, with `cells` bumps across the crop."""
    coarse = Image.fromarray(rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC))


def _scratch(crop: np.ndarray, rng: np.random.Generator, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One to three thin bright marks, gently bent, side by side, thinning out at their ends."""
    canvas = _Canvas(len(crop))
    t = np.linspace(-0.5, 0.5, 40)
    turn, length, bend = rng.uniform(0, np.pi), rng.uniform(0.45, 0.8), rng.uniform(-0.25, 0.25)
    along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    centre = rng.uniform(0.35, 0.65, 2)
    for k in range(rng.integers(1, 4)):
        own = length * (rng.uniform(0.3, 0.7) if k else 1.0)
        shift = rng.uniform(-0.5, 0.5) * (length - own)
        points = centre + np.outer(t * own + shift, along) + np.outer(bend * t**2 + 0.05 * k, across)
        canvas.stroke(points, rng.uniform(0.022, 0.032) * np.sqrt(np.maximum(1 - (2 * t) ** 2, 0.05)))
    return canvas.coverage() * 0.85, np.full_like(crop, rng.uniform(205, 235))


def _crack(crop: np.ndarray, rng: np.random.Generator, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A dark, jagged, branching line that starts at a border and thins out."""
    canvas = _Canvas(len(crop))

    def grow(start: np.ndarray, heading: float, steps: int, width: float) -> None:
        points = [start]
        aim = heading
        for i in range(steps):
            aim += 0.35 * (heading - aim) + rng.normal(0, 0.45)
            points.append(points[-1] + rng.uniform(0.025, 0.055) * np.array([np.cos(aim), np.sin(aim)]))
            if steps > 6 and 2 < i < steps - 3 and rng.random() < 0.16:
                side = rng.choice([-1, 1]) * rng.uniform(0.6, 1.1)
                grow(points[-1], heading + side, steps // 3, width * 0.65 * (1 - i / steps))
        canvas.stroke(np.array(points), width * np.linspace(1, 0.3, len(points)) * rng.uniform(0.75, 1.25, len(points)))

    side = rng.uniform(0, 2 * np.pi)
    start = 0.5 + 0.5 * np.array([np.cos(side), np.sin(side)]) / max(abs(np.cos(side)), abs(np.sin(side)))
    grow(start, side + np.pi + rng.uniform(-0.4, 0.4), int(rng.integers(14, 22)), rng.uniform(0.035, 0.05))
    return canvas.coverage() * 0.95, np.full_like(crop, rng.uniform(12, 35))


def _stain(crop: np.ndarray, rng: np.random.Generator, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A liquid that soaked in: the texture shows through, darker, darkest at the edge, with drops beside it."""
    canvas, centre, radius = _Canvas(len(crop)), rng.uniform(0.3, 0.7, 2), rng.uniform(0.13, 0.22)
    canvas.blob(_outline(rng, centre, radius, 0.25))
    for _drop in range(rng.integers(1, 5)):
        away = rng.uniform(0, 2 * np.pi)
        place = centre + radius * rng.uniform(1.3, 1.8) * np.array([np.cos(away), np.sin(away)])
        canvas.blob(_outline(rng, place, rng.uniform(0.015, 0.04), 0.1))
    coverage = canvas.coverage(blur=0.012)
    rim = coverage - canvas.coverage(blur=0.05)  # a drying liquid leaves most at its edge
    strength = rng.uniform(0.35, 0.5) + 0.5 * np.clip(rim, 0, 1) + 0.1 * _noise(rng, len(crop), 6)
    return coverage, crop * (1 - np.clip(strength, 0.25, 0.9))


def _hole(crop: np.ndarray, rng: np.random.Generator, _: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A chipped-out pit: dark, darkest under the edge that the light comes from, with a bright broken rim opposite."""
    size, radius = len(crop), rng.uniform(0.08, 0.13)
    centre, light = rng.uniform(0.22, 0.78, 2), rng.uniform(0, 2 * np.pi)
    towards = np.array([np.cos(light), np.sin(light)])
    outline = _outline(rng, centre, radius, 0.2)
    pit, both = _Canvas(size), _Canvas(size)
    pit.blob(outline)
    both.blob(outline)
    both.blob(outline + 0.022 * towards)  # the rim: what sticks out of the pit, away from the light
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    depth = np.clip(((x - centre[0]) * towards[0] + (y - centre[1]) * towards[1]) / radius, -1, 1)
    inside = 28 + 22 * depth + 8 * _noise(rng, size, 16)
    share = pit.coverage()
    return both.coverage(), share * inside + (1 - share) * np.minimum(0.6 * crop + 110, 235)


def _foreign(crop: np.ndarray, rng: np.random.Generator, material: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A piece of another material lying on the surface, with a short shadow."""
    size = len(crop)
    outline = _outline(rng, rng.uniform(0.28, 0.72, 2), rng.uniform(0.12, 0.18), 0.3)
    piece, both = _Canvas(size), _Canvas(size)
    piece.blob(outline)
    both.blob(outline)
    both.blob(outline + np.array([0.02, 0.025]))
    # Seen from twice as near and lighter or darker than its surroundings, or grass on gravel would be hard to find.
    near = np.asarray(
        Image.fromarray(material).resize((size, size), Image.Resampling.BICUBIC, (0, 0, size / 2, size / 2))
    )
    brightness = rng.choice([-1, 1]) * rng.uniform(40, 65)
    texture = np.clip(near - near.mean() + crop.mean() + brightness, 0, 255)
    share = piece.coverage()
    return both.coverage(), share * texture + (1 - share) * 0.45 * crop  # beside the piece: its shadow


DEFECTS = {"scratch": _scratch, "crack": _crack, "stain": _stain, "hole": _hole, "foreign": _foreign}
