"""Street scenes drawn by numbers: a small data set for semantic segmentation that needs no download.

Each scene is a view along a road at some time of day: a sky with clouds, buildings with windows, grass, a road with
lane markings, trees, cars and poles a few pixels wide, lit from one side, with noise. The same seed draws the same
scenes.

    python examples/segmentation/scenes.py scenes.png     # draws a sheet of them, with their labels
"""

import sys

import numpy as np
from PIL import Image, ImageDraw

CLASSES = ("sky", "building", "road", "grass", "tree", "car", "pole")
PALETTE = ((135, 190, 235), (190, 120, 90), (90, 90, 100), (150, 200, 80), (30, 110, 50), (210, 50, 60), (250, 210, 60))
SKY, BUILDING, ROAD, GRASS, TREE, CAR, POLE = range(len(CLASSES))


class Scene:
    """A canvas of float colors in [0, 1] and one of labels, painted on together, from far to near."""

    def __init__(self, rng: np.random.Generator, size: int) -> None:
        self.rng = rng
        self.size = size
        self.image = np.zeros((size, size, 3), np.float32)
        self.labels = np.zeros((size, size), np.uint8)
        self.rows, self.columns = np.mgrid[0:size, 0:size].astype(np.float32)

    def noise(self, cell: float) -> np.ndarray:
        """Smooth noise in [-1, 1] of shape (size, size) whose features are about `cell` pixels large."""
        cells = max(int(self.size / cell), 2)
        grid = Image.fromarray(self.rng.uniform(-1, 1, (cells, cells)).astype(np.float32))
        return np.asarray(grid.resize((self.size, self.size), Image.Resampling.BICUBIC))

    def paint(self, label: int, mask: np.ndarray, color: np.ndarray) -> None:
        """Give the pixels of a mask a label and a color, one for all or one each."""
        self.labels[mask] = label
        self.image[mask] = np.broadcast_to(color, self.image.shape)[mask]

    def polygon(self, *points: tuple[float, float]) -> np.ndarray:
        """Mask of a polygon of (column, row) corners."""
        mask = Image.new("1", (self.size, self.size))
        ImageDraw.Draw(mask).polygon([(float(x), float(y)) for x, y in points], fill=1)
        return np.asarray(mask)

    def box(self, left: float, top: float, right: float, bottom: float) -> np.ndarray:
        """Mask of the pixels whose column is in [left, right) and whose row is in [top, bottom)."""
        across = (self.columns >= left) & (self.columns < right)
        return across & (self.rows >= top) & (self.rows < bottom)

    def disc(self, column: float, row: float, radius: float) -> np.ndarray:
        """Mask of a disc."""
        return (self.columns - column) ** 2 + (self.rows - row) ** 2 <= radius**2

    def textured(self, color: np.ndarray, *textures: tuple[float, float]) -> np.ndarray:
        """A color (3,) made rough: for each (cell, strength), smooth noise is added to its brightness."""
        rough = np.broadcast_to(color, self.image.shape).astype(np.float32)
        for cell, strength in textures:
            rough = rough * (1 + strength * self.noise(cell)[..., None])
        return rough

    def sky(self, horizon: float) -> None:
        top = np.array([0.25, 0.45, 0.8]) * self.rng.uniform(0.7, 1.1)
        bottom = np.array([0.75, 0.82, 0.9]) + self.rng.uniform(-0.1, 0.15) * np.array([1.0, 0.1, -1.0])
        height = (self.rows / horizon).clip(0, 1)[..., None]
        clouds = (self.noise(self.size / 5) + 0.4 * self.noise(self.size / 14)).clip(0, 1)[..., None]
        color = top * (1 - height) + bottom * height
        self.paint(SKY, self.rows >= 0, color + (0.95 - color) * 0.8 * clouds)

    def ground(self, horizon: float, vanishing: float) -> None:
        grass = np.array([0.32, 0.5, 0.18]) * self.rng.uniform(0.8, 1.2, 3)
        self.paint(GRASS, self.rows >= horizon, self.textured(grass, (2, 0.25), (12, 0.2)))
        size = self.size
        left, right = vanishing - size * self.rng.uniform(0.35, 0.6), vanishing + size * self.rng.uniform(0.35, 0.6)
        road = self.polygon((vanishing - 3, horizon), (vanishing + 3, horizon), (right, size), (left, size))
        road = road & (self.rows >= horizon)
        asphalt = np.full(3, self.rng.uniform(0.3, 0.5))
        self.paint(ROAD, road, self.textured(asphalt, (1.5, 0.12), (20, 0.1)))
        depth = ((self.rows - horizon) / (size - horizon)).clip(0, 1)
        middle = vanishing + (0.5 * (left + right) - vanishing) * depth
        dashes = (np.sin(6 / (depth + 0.12) + self.rng.uniform(0, 6)) > 0) & (abs(self.columns - middle) < 2.2 * depth)
        self.image[road & dashes] = 0.85

    def building(self, horizon: float) -> None:
        width, height = self.size * self.rng.uniform(0.15, 0.35), horizon * self.rng.uniform(0.4, 0.9)
        left = self.rng.uniform(-0.1, 0.9) * self.size
        top = horizon - height
        walls = ([0.6, 0.35, 0.28], [0.65, 0.6, 0.5], [0.5, 0.5, 0.53], [0.75, 0.72, 0.68])
        wall = np.array(walls[self.rng.integers(len(walls))]) * self.rng.uniform(0.75, 1.15)
        mask = self.box(left, top, left + width, horizon + self.rng.uniform(0, 3))
        self.paint(BUILDING, mask, self.textured(wall, (2, 0.06)))
        pitch, window = self.rng.integers(6, 10), self.rng.uniform(0.35, 0.6)
        u, v = (self.columns - left) / pitch % 1, (self.rows - top) / pitch % 1
        panes = mask & (abs(u - 0.5) < window / 2) & (abs(v - 0.5) < window / 2)
        self.image[panes] = np.array([0.2, 0.25, 0.32]) * self.rng.uniform(0.6, 1.8)

    def shadow(self, column: float, row: float, width: float) -> None:
        ellipse = ((self.columns - column) / width) ** 2 + ((self.rows - row) / (0.18 * width + 1)) ** 2 <= 1
        self.image[ellipse & (self.labels != SKY)] *= 0.6

    def tree(self, column: float, base: float, height: float) -> None:
        self.shadow(column, base, 0.4 * height)
        trunk = np.array([0.35, 0.24, 0.15]) * self.rng.uniform(0.8, 1.2)
        half = max(0.05 * height, 1.5)
        self.paint(
            TREE, self.box(column - half, base - 0.5 * height, column + half, base), self.textured(trunk, (2, 0.2))
        )
        crown = np.zeros_like(self.labels, bool)
        for _ in range(14):
            across, up = self.rng.normal(0, 0.14, 2) * height
            crown |= self.disc(column + across, base - 0.68 * height + up, height * self.rng.uniform(0.1, 0.2))
        leaves = np.array([0.12, 0.3, 0.1]) * self.rng.uniform(0.8, 1.4, 3)
        self.paint(TREE, crown, self.textured(leaves, (1.5, 0.35), (6, 0.35)))

    def car(self, column: float, base: float, width: float) -> None:
        self.shadow(column, base, 0.6 * width)
        color = self.rng.uniform(0.1, 0.95, 3)
        half, height = width / 2, 0.32 * width
        roof = base - 1.85 * height
        cabin = self.polygon(
            (column - 0.65 * half, base - height),
            (column - 0.42 * half, roof),
            (column + 0.42 * half, roof),
            (column + 0.65 * half, base - height),
        )
        body = self.box(column - half, base - 1.1 * height, column + half, base - 0.18 * height)
        shade = 1.15 - 0.5 * ((self.rows - roof) / (base - roof)).clip(0, 1)[..., None]
        self.paint(CAR, cabin, np.array([0.15, 0.18, 0.22]))
        self.paint(CAR, body, (color * shade).clip(0, 1))
        for wheel in (-0.6, 0.6):
            hub = (column + wheel * half, base - 0.22 * height)
            self.paint(CAR, self.disc(*hub, 0.3 * height), np.array([0.06, 0.06, 0.06]))
            self.paint(CAR, self.disc(*hub, 0.12 * height), np.array([0.6, 0.6, 0.6]))

    def pole(self, column: float, base: float, height: float) -> None:
        width = max(round(0.08 * height), 4)
        left = round(column - width / 2)
        color = np.array([0.55, 0.56, 0.58]) * self.rng.uniform(0.4, 1.2)
        round_shade = 1.2 - 1.2 * abs((self.columns - left) / width - 0.35)[..., None]
        self.paint(POLE, self.box(left, base - height, left + width, base), color * round_shade)
        arm = left + width / 2 + self.rng.choice((-1, 1)) * height * 0.2
        self.paint(POLE, self.box(min(left, arm), base - height, max(left, arm), base - height + width), color)

    def light(self) -> None:
        """Light the scene by one lamp of some color, from one side, and photograph it with some noise."""
        angle = self.rng.uniform(0, 2 * np.pi)
        slope = (np.cos(angle) * self.columns + np.sin(angle) * self.rows) / self.size
        exposure = self.rng.uniform(0.65, 1.15) * (1 + self.rng.uniform(0, 0.5) * (slope - slope.mean()))
        self.image *= exposure[..., None] * self.rng.uniform(0.88, 1.12, 3)
        self.image += self.rng.normal(0, self.rng.uniform(0.01, 0.05), self.image.shape)


def draw(seed: int, index: int, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Args:
        seed: Of the data set.
        index: Of the scene in the data set.
        size: Height and width in pixels.

    Returns:
        Image (size, size, 3) and labels (size, size), both uint8; labels are indices into `CLASSES`.
    """
    rng = np.random.default_rng((seed, index))
    scene = Scene(rng, size)
    horizon, vanishing = size * rng.uniform(0.36, 0.52), size * rng.uniform(0.35, 0.65)
    scene.sky(horizon)
    for _ in range(rng.integers(1, 4)):
        scene.building(horizon)
    scene.ground(horizon, vanishing)

    def place(side: float, depth: float) -> tuple[float, float]:
        """Column and row of a point on the ground: `side` of the road from -1 to 1, `depth` from far 0 to near 1."""
        return vanishing + side * size * (0.05 + 0.55 * depth), horizon + depth * (size - horizon)

    things = []  # of the depth they stand at, the largest last
    for _ in range(rng.integers(1, 4)):
        depth, side = rng.uniform(0.08, 0.45), rng.choice((-1, 1)) * rng.uniform(1.3, 2.2)
        things.append((depth, scene.tree, (*place(side, depth), size * (0.2 + 0.7 * depth))))
    for _ in range(rng.integers(1, 3)):
        depth, side = rng.uniform(0.2, 0.75), rng.choice((-1, 1)) * rng.uniform(0.3, 0.5)
        things.append((depth, scene.car, (*place(side, depth), size * (0.1 + 0.3 * depth))))
    for _ in range(rng.integers(1, 3)):
        depth, side = rng.uniform(0.2, 0.6), rng.choice((-1, 1)) * rng.uniform(1.05, 1.3)
        things.append((depth, scene.pole, (*place(side, depth), size * (0.3 + 0.5 * depth))))
    for _, paint, where in sorted(things, key=lambda thing: thing[0]):
        paint(*where)
    scene.light()
    return (scene.image.clip(0, 1) * 255).astype(np.uint8), scene.labels


# Near infrared and warmth of each class, from 0 to 1
INFRARED = np.array((0.1, 0.3, 0.25, 0.8, 0.9, 0.2, 0.3))
WARMTH = np.array((0.05, 0.5, 0.65, 0.35, 0.3, 0.9, 0.45))


def to_bands(image: np.ndarray, labels: np.ndarray, seed: int, index: int) -> np.ndarray:
    """Draw a scene as a satellite takes it: blue, green, red, near infrared and warmth (5, H, W), uint16 up to 4,000.

    Args:
        image: Shape (H, W, 3), of :func:`draw`.
        labels: Shape (H, W).
        seed: Of the data set.
        index: Of the scene.
    """
    rng = np.random.default_rng((seed, index, 5))
    more = np.stack([INFRARED[labels], WARMTH[labels]], -1) * rng.uniform(0.8, 1.1, 2)
    more += rng.normal(0, 0.08, more.shape)
    bands = np.concatenate([image[..., ::-1] / 255, more], -1).clip(0, 1)
    return (300 + 3700 * bands**1.5).astype(np.uint16).transpose(2, 0, 1)


def main() -> None:
    path = sys.argv[1] if len(sys.argv) > 1 else "scenes.png"
    pairs = [draw(0, index) for index in range(24)]
    palette = np.array(PALETTE, np.uint8)
    rows = [np.hstack([np.vstack([image, palette[labels]]) for image, labels in pairs[i : i + 8]]) for i in (0, 8, 16)]
    Image.fromarray(np.vstack(rows)).save(path)
    print(f"{len(pairs)} scenes and their labels: {path}")


if __name__ == "__main__":
    main()
