"""Generated slices of hearts, as arrays with patients as groups: grey images in which few labels have to do.

    python benchmarks/phantom.py FOLDER        # train.npz, val.npz and test.npz of 70, 10 and 20 patients

A patient has eight short-axis slices of 128x128 from base to apex, with the classes of cardiac MRI: 1 right ventricle,
2 myocardium, 3 left ventricle. Sizes, places, grey values, contrast, noise, a slow change of brightness and what lies
around the heart are the patient's own. They are drawn, not simulated: simpler than any real image.
"""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter

SIDE, SLICES, PATIENTS = 128, 8, {"train": 70, "val": 10, "test": 20}
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE].astype(float)


def patient(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Slices float32 [8, 128, 128] in [0, 1], and their class ids uint8."""
    x, y = 64 + rng.uniform(-10, 10), 64 + rng.uniform(-10, 10)
    radius, wall, towards_right = rng.uniform(15, 23), rng.uniform(0.25, 0.5), rng.uniform(-0.5, 0.5) + np.pi
    blood, muscle = rng.uniform(0.65, 0.95), rng.uniform(0.2, 0.4)
    right_blood, fat = blood + rng.uniform(-0.08, 0.08), rng.uniform(0.5, 1.0)
    air, flesh = rng.uniform(0.05, 0.2), rng.uniform(0.25, 0.5)
    around = [
        (rng.uniform(0, SIDE), rng.uniform(0, SIDE), rng.uniform(5, 16), rng.uniform(5, 16), rng.uniform(0, np.pi),
         rng.choice([fat, blood, flesh, air]))
        for _ in range(14)
    ]  # fmt: skip
    contrast, brightness = rng.uniform(0.7, 1.4), 1 + 0.2 * _clouds(rng, 35)
    images, masks = [], []
    for number in range(SLICES):
        outer = radius * (1 - 0.75 * (number / (SLICES - 1)) ** 1.5)
        inner, stretch = outer * (1 - wall), rng.uniform(0.92, 1.08)
        distance = np.hypot((COLUMNS - x) * stretch, (ROWS - y) / stretch) + _clouds(rng, 9) * 0.07 * outer
        left, myocardium = distance < inner, (distance >= inner) & (distance < outer)
        middle = x + np.cos(towards_right) * outer * 1.15, y + np.sin(towards_right) * outer * 1.15
        bulge = _ellipse(*middle, 0.62 * outer, 1.15 * outer, towards_right) + 0.12 * _clouds(rng, 8)
        right = (bulge < 1) & (distance >= 1.02 * outer) & (number < SLICES - 1)
        image = air + 0.05 * _clouds(rng, 6)
        for *place, grey in around:
            image[_ellipse(*place) + 0.15 * _clouds(rng, 7) < 1] = grey
        image[distance < 1.25 * outer] = 0.6 * fat
        image[right], image[myocardium], image[left] = right_blood, muscle, blood
        image[left & (_clouds(rng, 2.2) > 1.5) & (distance > 0.4 * inner)] = muscle
        image = gaussian_filter(image, 0.8).clip(min=0) ** contrast * brightness + rng.normal(0, 0.05, image.shape)
        low, high = np.percentile(image, [1, 99])
        images.append(((image - low) / (high - low)).clip(0, 1).astype(np.float32))
        masks.append((1 * right + 2 * myocardium + 3 * left).astype(np.uint8))
    return np.array(images), np.array(masks)


def _clouds(rng: np.random.Generator, sigma: float) -> np.ndarray:
    field = gaussian_filter(rng.standard_normal((SIDE, SIDE)), sigma)
    return (field - field.mean()) / field.std()


def _ellipse(x: float, y: float, along: float, across: float, angle: float) -> np.ndarray:
    """Below 1 within an ellipse with these half axes."""
    u = (COLUMNS - x) * np.cos(angle) + (ROWS - y) * np.sin(angle)
    v = -(COLUMNS - x) * np.sin(angle) + (ROWS - y) * np.cos(angle)
    return (u / along) ** 2 + (v / across) ** 2


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if folder.is_file():
        parser.error(f"{folder}: is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for part, count in PATIENTS.items():
        numbers = range(first, first + count)
        made = [patient(np.random.default_rng(1000 + number)) for number in numbers]
        images, masks = (np.concatenate(arrays) for arrays in zip(*made, strict=True))
        groups = np.repeat([f"p{number:03d}" for number in numbers], SLICES)
        np.savez(folder / f"{part}.npz", image=images, label=masks, group=groups)
        first += count


if __name__ == "__main__":
    main()
