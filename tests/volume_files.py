"""What tests of volumes share: small volumes in files, as people have them."""

from pathlib import Path

import h5py
import nibabel
import numpy as np

PHASES = ("frame01", "frame02")


def scan(seed: int, shape: tuple[int, int, int] = (6, 20, 16)) -> tuple[np.ndarray, np.ndarray]:
    """Slices of a bright ball, class 1, with a core, class 2: float32 and uint8 [Z, R, C]."""
    rng = np.random.default_rng(seed)
    axes = np.stack(np.mgrid[: shape[0], : shape[1], : shape[2]]).astype(float)
    middle = np.array(shape) / 2 + rng.uniform(-1, 1, 3)
    away = (((axes - middle[:, None, None, None]) / (np.array(shape)[:, None, None, None] / 3)) ** 2).sum(axis=0)
    label = (away < 1).astype(np.uint8) + (away < 0.25)
    return (100 + 300.0 * label + rng.normal(0, 40, shape)).astype(np.float32), label.astype(np.uint8)


def write_nifti(
    folder: Path, name: str, seed: int, *, affine: np.ndarray | None = None, label: np.ndarray | None = None,
    masked: bool = True, axes: tuple[int, int, int] = (2, 1, 0), shape: tuple[int, int, int] = (6, 20, 16),
) -> Path:  # fmt: skip
    """Write ``<name>.nii.gz`` and, where it is ``masked``, ``<name>_gt.nii.gz``; ``axes`` of [Z, R, C] in the file."""
    image, truth = scan(seed, shape)
    folder.mkdir(parents=True, exist_ok=True)
    affine = np.diag([-1.5, -1.5, 8.0, 1.0]) if affine is None else affine
    nibabel.save(nibabel.Nifti1Image(image.transpose(axes).astype(np.int16), affine), folder / f"{name}.nii.gz")
    if masked:
        values = truth.transpose(axes) if label is None else label
        nibabel.save(nibabel.Nifti1Image(values, affine), folder / f"{name}_gt.nii.gz")
    return folder / f"{name}.nii.gz"


def write_hearts(folder: Path, patients: int = 6) -> Path:
    """Two phases of each patient as NIfTI, and lists of the parts: the last two are for validation and test."""
    names = [f"p{i}_{phase}" for i in range(patients) for phase in PHASES]
    for seed, name in enumerate(names):
        write_nifti(folder / "volumes", name, seed)
    for part, some in (("train", names[:-4]), ("val", names[-4:-2]), ("test", names[-2:])):
        (folder / f"{part}.list").write_text("\n".join(some) + "\n")
    return folder


def write_hdf5(path: Path, **arrays: np.ndarray) -> Path:
    """Write arrays to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return path
