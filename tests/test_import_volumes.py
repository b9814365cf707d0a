"""Importing volumes: every voxel comes in where it belongs, and whatever is wrong is said at once."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
from conftest import only_error_line
from hypothesis import given, settings
from hypothesis import strategies as st
from volume_files import PHASES, scan, write_hdf5, write_hearts, write_nifti

from sightline.core.errors import UserError
from sightline.importers.volume_files import Content, grid_of, nifti_bytes
from sightline.importers.volumes import ImportVolumesParams, import_volumes
from sightline.recording.volumes import Intake, VolumeFile


def imported(source: Path, **params) -> VolumeFile:
    target = source.parent / "volumes.hdf5"
    import_volumes(source, target, ImportVolumesParams(**params))
    return VolumeFile.open(target)


def refused(source: Path, **params) -> list[str]:
    """The lines of the error; nothing is written."""
    target = source.parent / "refused/volumes.hdf5"
    with pytest.raises(UserError) as error:
        import_volumes(source, target, ImportVolumesParams(**params))
    assert not target.parent.exists()
    return str(error.value).splitlines()


def test_every_voxel_of_nifti_volumes_comes_in(tmp_path):
    file = imported(write_hearts(tmp_path / "h"))
    assert file.image.shape == (72, 20, 20)
    assert np.unique(file.group).tolist() == [f"p{i}" for i in range(6)]
    assert {group: {*file.split[file.group == group]} for group in ("p0", "p4", "p5")} == {
        "p0": {"train"}, "p4": {"val"}, "p5": {"test"},
    }  # fmt: skip
    assert file.labelled.all()
    assert (file.spacing == [8, 1.5, 1.5]).all()
    rows = file.volume == "p1_frame02"
    image, label = scan(3)
    image = image.astype(np.int16)[:, ::-1, ::-1]  # the file's axes go to the left and back
    low, high = np.percentile(image, [0.5, 99.5])
    expected = np.round(255 * ((image - low) / (high - low)).clip(0, 1))
    assert (file.image[rows][:, :, 2:18] == expected).all()
    assert (file.label[rows][:, :, 2:18] == label[:, ::-1, ::-1]).all()
    assert not file.image[rows][:, :, :2].any()
    assert not file.label[rows][:, :, 18:].any()


def test_volumes_of_several_orientations_lie_alike(tmp_path):
    """The same body, stored along other axes, comes in as the same slices."""
    turned = {
        "a": ((2, 1, 0), np.diag([1.5, 1.5, 8.0, 1.0])),
        "b": ((0, 1, 2), np.array([[0, 0, 1.5, 0], [0, 1.5, 0, 0], [8.0, 0, 0, 0], [0, 0, 0, 1]])),
    }
    for name, (axes, affine) in turned.items():
        write_nifti(tmp_path / "v", name, 5, axes=axes, affine=affine)
    image, label = scan(5)
    image = image.transpose(2, 1, 0)[::-1, ::-1]  # to the left and back
    for suffix, values in (("", image.astype(np.int16)), ("_gt", label.transpose(2, 1, 0)[::-1, ::-1])):
        affine = np.diag([-1.5, -1.5, 8.0, 1.0])
        affine[:2, 3] = 1.5 * 15, 1.5 * 19
        nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / f"v/c{suffix}.nii.gz")
    for name in ("b", "c"):
        (tmp_path / f"only_{name}").mkdir()
        for one in ("a", name):
            for path in (tmp_path / "v").glob(f"{one}*.nii.gz"):
                (tmp_path / f"only_{name}" / path.name).write_bytes(path.read_bytes())
        file = imported(tmp_path / f"only_{name}")
        first, second = (file.image[file.volume == volume] for volume in ("a", name))
        assert (first == second).all()
        assert (file.label[file.volume == "a"] == file.label[file.volume == name]).all()


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(*[st.integers(2, 7)] * 3), order=st.permutations(range(3)),
    signs=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 3), axis=st.integers(0, 2),
)  # fmt: skip
def test_the_way_to_slices_and_back_keeps_every_voxel(shape, order, signs, axis):
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for i, (to, sign) in enumerate(zip(order, signs, strict=True)):
        affine[to, i] = sign * (1 + i)
    values = np.arange(np.prod(shape)).reshape(shape)
    content = Content(values, None, affine, np.array([1.0, 2.0, 3.0]))
    grid = grid_of(content, axis, None)
    slices = grid.slices(values)
    assert slices.shape == (grid.count, *grid.plane)
    assert (grid.array(slices) == values).all()
    moved = list(order).index(axis)  # which axis of the file the slices lie along
    assert grid.spacing[0] == 1 + moved
    back = nibabel.Nifti1Image.from_bytes(nifti_bytes(grid, values.astype(np.uint8), None, is_packed=False))
    assert np.allclose(back.affine, affine)
    assert (np.asarray(back.dataobj) == values.astype(np.uint8)).all()


@given(shape=st.tuples(st.integers(4, 20), st.integers(4, 20)), size=st.tuples(st.integers(8, 24), st.integers(8, 24)))
def test_crop_and_pad_are_undone_but_for_what_was_cropped(shape, size):
    intake = Intake(size=size, scale="none")
    values = np.random.default_rng(0).integers(1, 9, (2, *shape)).astype(np.uint8)
    placed = intake.placed(values, (1.0, 1.0), nearest=True)
    assert placed.shape == (2, *size)
    back = intake.undone(placed, shape, (1.0, 1.0))
    assert back.shape == values.shape
    assert ((back == values) | (back == 0)).all()
    if size[0] >= shape[0] and size[1] >= shape[1]:
        assert (back == values).all()


def test_slices_keep_their_aspect_and_get_one_size_of_pixels(tmp_path):
    for name, pixel, shape in (("a", 1.0, (6, 24, 20)), ("b", 2.0, (6, 12, 10)), ("c", 2.0, (6, 14, 12))):
        write_nifti(tmp_path / "v", name, 1, affine=np.diag([pixel, pixel, 8, 1]), shape=shape)
    file = imported(tmp_path / "v", exclude=("c*",))
    assert (file.intake.scale, file.intake.pixel) == ("spacing", 1.5)
    assert np.allclose(file.spacing, [8, 1.5, 1.5], rtol=0.05)
    areas = [(file.label[file.volume == name] > 0).sum() for name in ("a", "b")]
    assert areas[0] == pytest.approx(areas[1], rel=0.25)
    file = imported(tmp_path / "v", scale="field", size=(24, 24))
    assert file.image.shape[1:] == (24, 24)
    assert [file.spacing[file.volume == name][0, 1] for name in "abc"] == pytest.approx([1, 1, 2 * 14 / 24])


def test_hounsfield_limits_are_a_parameter(tmp_path):
    write_nifti(tmp_path / "v", "a", 0)
    write_nifti(tmp_path / "v", "b", 1)
    file = imported(tmp_path / "v", window=(100, 400))
    image = scan(0)[0].astype(np.int16)[:, ::-1, ::-1]
    assert (file.image[file.volume == "a"][:, :, 2:18] == np.round(255 * ((image - 100) / 300).clip(0, 1))).all()


def test_hdf5_slices_and_volumes_with_lists(tmp_path):
    """As SSL4MIS, SS-Net and BCP have them: training patients in slices, the others as volumes."""
    root, names = tmp_path / "acdc", [f"patient{i:03d}_{phase}" for i in range(4) for phase in PHASES]
    for seed, name in enumerate(names):
        image, label = scan(seed, (11, 20, 16))
        if name < "patient002":
            for i in range(11):
                write_hdf5(root / f"data/slices/{name}_slice_{i + 1}.h5", image=image[i], label=label[i])
        else:
            write_hdf5(root / f"data/{name}.h5", image=image, label=label)
    slices = [f"{name}_slice_{i}" for name in names[:4] for i in (1, 10, 2)]
    for part, some in (("train_slices", slices), ("val", names[4:6]), ("test", names[6:])):
        (root / f"{part}.list").write_text("\n".join(some))
    (line,) = refused(root)
    assert line.count(".h5") == 8
    assert "without spacing; set import_volumes.spacing=[slices,rows,columns]" in line
    file = imported(root, spacing=(10, 1, 1))
    assert (file.label[file.volume == names[0]][:, :, 2:18] == scan(0, (11, 20, 16))[1]).all()  # 10 comes behind 9
    assert dict(zip(file.group.tolist(), file.split.tolist(), strict=True)) == {
        "patient000": "train", "patient001": "train", "patient002": "val", "patient003": "test"
    }  # fmt: skip


def test_left_atria_have_their_names_from_folders(tmp_path):
    for i in range(3):
        image, label = (part.transpose(1, 2, 0) for part in scan(i, (12, 20, 16)))
        write_hdf5(tmp_path / f"la/ID{i}/mri_norm2.h5", image=image, label=label)
    (tmp_path / "la/train.list").write_text("ID0\nID1\n")
    (tmp_path / "la/test.list").write_text("ID2\n")
    file = imported(tmp_path / "la", spacing=(1, 1, 1))
    assert np.unique(file.volume).tolist() == ["ID0", "ID1", "ID2"]
    assert (file.label[file.volume == "ID1"][:, :, 2:18] == scan(1, (12, 20, 16))[1]).all()


def test_npz_and_labels_of_any_whole_numbers(tmp_path):
    image, label = scan(0)
    (tmp_path / "v").mkdir()
    np.savez(tmp_path / "v/a.npz", image=image, label=label.astype(np.float64) * 500, spacing=[8, 1, 1])
    np.savez(tmp_path / "v/b.npz", image=image + 1, label=np.full(image.shape, 255), spacing=[8, 1, 1])
    file = imported(tmp_path / "v")
    assert np.unique(file.label).tolist() == [0, 255, 500, 1000]
    assert file.labelled[file.volume == "a"].all()
    assert not file.labelled[file.volume == "b"].any()


def test_an_npz_without_a_group_is_asked_for_it(tmp_path):
    image = np.zeros((40, 24, 24), np.uint8)
    np.savez(tmp_path / "slices.npz", image=image, label=image)
    (line,) = refused(tmp_path / "slices.npz")
    assert "slices.npz: nothing tells along which axis slices lie" in line
    assert "add an array group that names the patient of each slice" in line
    np.savez(tmp_path / "slices.npz", image=image[:20], label=image[:20])
    (line,) = refused(tmp_path / "slices.npz")
    assert "slices.npz: without spacing" in line
    assert "add an array group that names the patient of each slice" in line


def test_all_faulty_files_are_listed_at_once(tmp_path, stage):
    folder = write_hearts(tmp_path / "h") / "volumes"
    (folder / "p0_frame01.nii.gz").write_bytes(b"garbage")
    write_nifti(folder, "p0_frame02", 1, label=np.zeros((3, 3, 3), np.uint8))
    four = nibabel.Nifti1Image(np.zeros((16, 20, 6, 2), np.int16), np.diag([1, 1, 8, 1]))
    nibabel.save(four, folder / "p1_frame01.nii.gz")
    affine = np.diag([-1.5, -1.5, 8, 1])
    affine[0, 3] = 40
    nibabel.save(nibabel.Nifti1Image(scan(3)[1].transpose(2, 1, 0), affine), folder / "p1_frame02_gt.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones((16, 20, 6), np.int16), None), folder / "p2_frame01.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.ones((16, 20, 6), np.int16), None), folder / "p2_frame01_gt.nii.gz")
    image = scan(5)[0].transpose(2, 1, 0)
    image[0, 0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(image, np.diag([-1.5, -1.5, 8.0, 1.0])), folder / "p2_frame02.nii.gz")
    (folder / "p9_gt.nii.gz").write_bytes((folder / "p3_frame01_gt.nii.gz").read_bytes())
    (tmp_path / "h/val.list").write_text("p4_frame01\np4_frame02\np77\np5_frame01\n")
    lines = refused(tmp_path / "h")
    for words in (
        "p0_frame01.nii.gz: not a NIfTI file",
        "p0_frame02_gt.nii.gz: label has the shape [3, 3, 3], its image [16, 20, 6]",
        "p1_frame01.nii.gz: has 4 dimensions [16, 20, 6, 2], a volume has 3; split it into phases",
        "p1_frame02_gt.nii.gz: lies elsewhere than its image", "p2_frame01.nii.gz: without spacing; set import_volumes",
        "p2_frame02.nii.gz: 1 voxels are NaN or infinity", "p9_gt.nii.gz: a label without an image of its name",
        "val.list: names volumes that are not there: p77", "val.list: names volumes of test, too: p5_frame01",
    ):  # fmt: skip
        assert sum(words in line for line in lines) == 1, (words, lines)
    assert len(lines) == 9
    result = stage("import_volumes", tmp_path / "h", tmp_path / "out/v.hdf5")
    assert "p9_gt.nii.gz: a label without an image" in only_error_line(result)
    assert len(result.stderr[result.stderr.index("error: ") :].splitlines()) == 9
    assert not (tmp_path / "out").exists()


def test_volumes_that_do_not_go_together_are_refused(tmp_path):
    folder = write_hearts(tmp_path / "h") / "volumes"
    write_nifti(folder, "p1_frame01", 2, affine=np.diag([1.5, 8.0, 1.5, 1.0]))
    (line,) = refused(tmp_path / "h")
    assert "p1_frame01.nii.gz: of another orientation: slices lie along another axis than those of the 11 other" in line
    write_nifti(folder, "p1_frame01", 11)
    (line,) = refused(tmp_path / "h")
    assert "p5_frame02.nii.gz: the same image as" in line
    assert "of part test, the other of train" in line
    write_nifti(folder, "p1_frame01", 2)
    write_nifti(folder, "p5_frame01", 10, label=3 * scan(10)[1].transpose(2, 1, 0))
    (line,) = refused(tmp_path / "h")
    assert "part test: its labels hold 3, 6, which no labelled volume of train has" in line
    (tmp_path / "h/test.list").write_text("p5_frame01\np4_frame02\n")
    assert any("p4" in line and "a patient belongs in one part" in line for line in refused(tmp_path / "h"))


@pytest.mark.parametrize(
    ("params", "words"),
    [({"group": "p"}, r"group must have a \(group\)"), ({"window": (5, 1)}, "window must be two rising numbers"),
     ({"size": (2, 2)}, "size must be 8..4096"), ({"spacing": (1, 0, 1)}, "spacing must be three numbers above 0"),
     ({"percentiles": (-1, 50)}, "percentiles must lie in 0..100")],
)  # fmt: skip
def test_parameters_out_of_range(params, words):
    with pytest.raises(ValueError, match=words):
        ImportVolumesParams(**params)


def test_a_volume_that_may_be_a_label_of_another_is_asked_about(tmp_path):
    for i in range(2):
        write_nifti(tmp_path / "v", f"p{i}", i)
        write_nifti(tmp_path / "v", f"p{i}_ground_truth", 10 + i, masked=False)
        write_nifti(tmp_path / "v", f"p{i}_ED", 20 + i)  # a phase
        write_nifti(tmp_path / "v", f"p{i}_late", 30 + i)  # has a label
    (line,) = refused(tmp_path / "v")
    assert line == (
        f"{tmp_path}/v/p0_ground_truth.nii.gz and 1 more: a label, or another image? Names of labels end in _gt, "
        '_label, _seg or _mask: rename it, or leave it out with import_volumes.exclude=["*_ground_truth.nii*"]'
    )
    assert len(np.unique(imported(tmp_path / "v", exclude=("*_ground_truth.nii*",)).volume)) == 6


def test_volumes_without_any_label_are_refused(tmp_path):
    write_nifti(tmp_path / "v", "p1", 1, masked=False)
    (line,) = refused(tmp_path / "v")
    assert line.startswith(f"{tmp_path}/v: no volume has a label; ")
    assert "NAME.nii.gz and its label with _gt, _label, _seg or _mask behind NAME" in line
    write_hdf5(tmp_path / "h/p1.h5", image=scan(1)[0])
    (line,) = refused(tmp_path / "h", spacing=(1, 1, 1))
    assert line == f"{tmp_path}/h: no volume has a label; expected an array label beside image"


def test_a_crop_that_cuts_labels_is_told(tmp_path):
    write_hearts(tmp_path / "h")
    told = import_volumes(tmp_path / "h", tmp_path / "v.hdf5", ImportVolumesParams(size=(8, 8)))
    assert "warning: import_volumes.size cuts labelled pixels off in 12 volumes" in told
