"""Generated hearts in which few labels have to do, as slices or as volumes, with patients as groups.

    python benchmarks/phantom.py FOLDER           # train.npz, val.npz and test.npz of 70, 10 and 20 patients
    python benchmarks/phantom.py FOLDER --nifti   # the same as NIfTI volumes, with lists of the parts
    python benchmarks/phantom.py FOLDER --ellipsoids  # NIfTI volumes of one class in three dimensions, 80 and 20

A patient has two phases, wide and contracted, of six to eleven short-axis slices, some of them beyond the heart, with
the classes of cardiac MRI: 1 right ventricle, 2 myocardium, 3 left ventricle. Sizes, places, grey values, contrast,
noise, blur, a slow change of brightness, the size of pixels, the field of view and what lies around the heart are the
patient's own; slices are shifted against each other, as by breath. Arrays hold the middle 128x128 pixels. Hearts are
drawn, not simulated: simpler than any real image.
"""

from argparse import ArgumentParser
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from scipy.ndimage import gaussian_filter

SIDE, PATIENTS = 128, {"train": 70, "val": 10, "test": 20}
PHASES = {"frame01": 1.0, "frame02": 0.72}  # how wide the left ventricle is
ATRIA = {"train": 80, "test": 20}


class Volume(NamedTuple):
    """Slices of one phase."""

    image: np.ndarray  # float32 [Z, H, W]
    label: np.ndarray  # class ids, uint8 [Z, H, W]
    spacing: tuple[float, float, float]  # millimetres between slices, rows, columns


def patient(rng: np.random.Generator) -> dict[str, Volume]:
    """The phases of a patient, by name, all of one size."""
    shape = int(rng.integers(112, 161)), int(rng.integers(112, 161))
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(float)
    count, first, last = int(rng.integers(6, 12)), rng.uniform(-0.15, 0.1), rng.uniform(0.85, 1.1)
    x, y = shape[1] / 2 + rng.uniform(-18, 18), shape[0] / 2 + rng.uniform(-18, 18)
    radius, wall, towards_right = rng.uniform(13, 24), rng.uniform(0.22, 0.5), rng.uniform(-0.9, 0.9) + np.pi
    muscle = rng.uniform(0.15, 0.45)
    blood = muscle + rng.uniform(0.15, 0.5)
    right_blood, fat = blood + rng.uniform(-0.12, 0.08), rng.uniform(0.4, 1.0)
    air, flesh = rng.uniform(0.02, 0.2), rng.uniform(0.2, 0.55)
    around = [
        (rng.uniform(0, shape[1]), rng.uniform(0, shape[0]), rng.uniform(5, 18), rng.uniform(5, 18),
         rng.uniform(0, np.pi), 0.15 * _clouds(rng, 7, shape), rng.choice([fat, blood, flesh, air, muscle]))
        for _ in range(18)
    ]  # fmt: skip
    contrast, noise, blur = rng.uniform(0.6, 1.6), rng.uniform(0.02, 0.1), rng.uniform(0.5, 1.3)
    brightness, gain = 1 + rng.uniform(0.05, 0.35) * _clouds(rng, 35, shape), rng.uniform(200, 2000)
    pixel = rng.uniform(1.9, 2.9)
    volumes = {}
    for phase, width in PHASES.items():
        images, masks = [], []
        for place in np.linspace(first, last, count):  # 0 is the base, 1 the apex
            outer = radius * np.sqrt(max(0.0, 1 - max(place, 0) ** 2.2)) * (0.55 + 0.45 * width)
            has_heart = place >= 0 and outer > 2.5
            inner = outer * (1 - wall) * width
            along, across = x + rng.normal(0, 1.2), y + rng.normal(0, 1.2)
            stretch = rng.uniform(0.9, 1.1)
            distance = np.hypot((columns - along) * stretch, (rows - across) / stretch)
            distance += _clouds(rng, 9, shape) * 0.07 * outer
            left = (distance < inner) & has_heart
            myocardium = (distance >= inner) & (distance < outer) & has_heart
            middle = along + np.cos(towards_right) * outer * 1.15, across + np.sin(towards_right) * outer * 1.15
            half = 0.62 * outer * width**0.5 + 1e-3, 1.15 * outer + 1e-3
            bulge = _ellipse(rows, columns, *middle, *half, towards_right)
            right = (bulge + 0.12 * _clouds(rng, 8, shape) < 1) & (distance >= 1.02 * outer) & has_heart
            right &= place < 0.9
            image = air + 0.05 * _clouds(rng, 6, shape)
            for *where, bent, grey in around:
                image[_ellipse(rows, columns, *where) + bent < 1] = grey
            image[distance < 1.25 * max(outer, 4)] = 0.6 * fat
            image[right], image[myocardium], image[left] = right_blood, muscle, blood
            image[left & (_clouds(rng, 2.2, shape) > 1.4) & (distance > 0.4 * inner)] = muscle
            image = gaussian_filter(image, blur).clip(min=0) ** contrast * brightness
            images.append(gain * (image + rng.normal(0, noise, shape)).clip(min=0))
            masks.append((1 * right + 2 * myocardium + 3 * left).astype(np.uint8))
        volumes[phase] = Volume(np.array(images, np.float32), np.array(masks), (8.0, pixel, pixel))
    return volumes


def atrium(rng: np.random.Generator) -> Volume:
    """A bent ellipsoid, class 1, among others that are not of it, in three dimensions.

    Some of the others are as bright and nearly as large, as other chambers and vessels are: the place tells the class.
    """
    shape = tuple(int(side) for side in rng.integers([40, 72, 72], [57, 97, 97]))
    axes = np.stack(np.mgrid[: shape[0], : shape[1], : shape[2]]).astype(float)
    image = 0.3 + 0.08 * gaussian_filter(rng.standard_normal(shape), 4) / 0.02 * 0.2
    grey = rng.uniform(0.55, 0.9)

    def body(middle: np.ndarray, half: np.ndarray) -> np.ndarray:
        bent = gaussian_filter(rng.standard_normal(shape), 5)
        away = (axes - middle[:, None, None, None]) / half[:, None, None, None]
        return (away**2).sum(axis=0) + 0.25 * bent / bent.std() < 1

    middle_of = np.array(shape) / 2 + rng.uniform(-6, 6, 3)
    half = rng.uniform([9, 13, 13], [14, 22, 22])
    for _ in range(10):
        image[body(rng.uniform(0, shape), rng.uniform(3, 11, 3))] = rng.uniform(0.1, 0.9)
    for turn in rng.uniform(0, 2 * np.pi) + np.arange(4) * np.pi / 2:  # around it in the plane
        aside = np.array([rng.uniform(-0.8, 0.8), np.sin(turn), np.cos(turn)]) * rng.uniform(1.5, 1.9) * half
        image[body(middle_of + aside, half * rng.uniform(0.4, 0.8))] = grey + rng.uniform(-0.05, 0.05)
    of_class = body(middle_of, half)
    image[of_class] = grey
    image = gaussian_filter(image, rng.uniform(0.5, 1.0)) + rng.normal(0, rng.uniform(0.02, 0.08), shape)
    return Volume(1000 * image.astype(np.float32), of_class.astype(np.uint8), (1.25, 1.25, 1.25))


def write_volume(folder: Path, name: str, volume: Volume) -> None:
    """Write ``<name>.nii.gz``, int16, and ``<name>_gt.nii.gz``: axes x, y, z, to the left, back and up."""
    between, row, column = volume.spacing
    affine = np.diag([-column, -row, between, 1.0])
    for suffix, values in (("", volume.image.round().astype(np.int16)), ("_gt", volume.label)):
        folder.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(values.transpose(2, 1, 0), affine), folder / f"{name}{suffix}.nii.gz")


def middle(image: np.ndarray, fill: float = 0) -> np.ndarray:
    """The middle 128x128 pixels of [Z, H, W], padded where there are fewer."""
    for axis in (1, 2):
        lacking = SIDE - image.shape[axis]
        if lacking < 0:
            image = image.take(range(-lacking // 2, -lacking // 2 + SIDE), axis=axis)
        else:
            around = (lacking // 2, lacking - lacking // 2)
            image = np.pad(image, [(0, 0)] + [around if i == axis else (0, 0) for i in (1, 2)], constant_values=fill)
    return image


def _clouds(rng: np.random.Generator, sigma: float, shape: tuple[int, int]) -> np.ndarray:
    field = gaussian_filter(rng.standard_normal(shape), sigma)
    return (field - field.mean()) / field.std()


def _ellipse(
    rows: np.ndarray, columns: np.ndarray, x: float, y: float, along: float, across: float, angle: float
) -> np.ndarray:
    """Below 1 within an ellipse with these half axes."""
    u = (columns - x) * np.cos(angle) + (rows - y) * np.sin(angle)
    v = -(columns - x) * np.sin(angle) + (rows - y) * np.cos(angle)
    return (u / along) ** 2 + (v / across) ** 2


def write_arrays(folder: Path, part: str, numbers: range) -> None:
    """One ``.npz`` of a part: slices, patients and volumes."""
    arrays: dict[str, list[np.ndarray]] = {"image": [], "label": [], "group": [], "volume": [], "spacing": []}
    for number in numbers:
        for phase, volume in patient(np.random.default_rng(1000 + number)).items():
            low, high = np.percentile(volume.image, [1, 99])
            arrays["image"].append(middle(((volume.image - low) / (high - low)).clip(0, 1).astype(np.float32)))
            arrays["label"].append(middle(volume.label))
            arrays["group"].append(np.repeat(f"p{number:03d}", len(volume.image)))
            arrays["volume"].append(np.repeat(f"p{number:03d}_{phase}", len(volume.image)))
            arrays["spacing"].append(np.tile(volume.spacing, (len(volume.image), 1)))
    np.savez(folder / f"{part}.npz", **{name: np.concatenate(some) for name, some in arrays.items()})


def main() -> None:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nifti", action="store_true", help="NIfTI volumes and lists of the parts, not arrays")
    parser.add_argument("--ellipsoids", action="store_true", help="NIfTI volumes of one class in three dimensions")
    args = parser.parse_args()
    folder = args.folder
    if folder.is_file():
        parser.error(f"{folder}: is a file; name a folder")
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for part, count in (ATRIA if args.ellipsoids else PATIENTS).items():
        numbers, names = range(first, first + count), []
        if not args.nifti and not args.ellipsoids:
            write_arrays(folder, part, numbers)
        for number in numbers if args.nifti or args.ellipsoids else ():
            rng = np.random.default_rng(1000 + number)
            phases = {"": atrium(rng)} if args.ellipsoids else patient(rng)
            for phase, volume in phases.items():
                names.append("_".join(filter(None, (f"p{number:03d}", phase))))
                write_volume(folder / "volumes", names[-1], volume)
        if names:
            (folder / f"{part}.list").write_text("\n".join(names) + "\n")
        first += count


if __name__ == "__main__":
    main()
