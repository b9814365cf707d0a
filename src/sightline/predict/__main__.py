"""Apply a trained model to your own data, without DVC: ``sightline predict embed|act|segment``.

    embed   ENCODER DATA OUTPUT   a folder of depth images, a recording, normalised depth (HDF5), or a video of depth
                                  -> embeddings, .hdf5 or .parquet; of an encoder of colour pictures likewise
    act     POLICY DATA OUTPUT    a recording, a file of views (HDF5), or a folder of joints.npy and a video of each
                                  camera -> chunks of actions, .parquet
    segment MODEL DATA OUTPUT     a folder of images, a recording, or a video -> a folder of masks, PNG; slices (.npz, a
                                  file or a folder) -> the same with masks; volumes (NIfTI, HDF5, .npz, a file or a
                                  folder) -> a folder of masks, NIfTI

The model's file says what it was trained with; data of another kind are refused.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.grids.features import add_features
from sightline.recording.names import add_naming, naming


class Params(Section):
    """No parameters: everything is in the weights file."""


def main(args: Namespace, _: Params) -> None:
    from sightline.predict import act, embed, segment  # each loads its branch when it is used

    if args.command == "segment":
        print(f"{args.output}: {segment(args.model, args.data, args.output, args.largest_component)} masks")
        return
    if args.command == "embed":
        print(f"{args.output}: {embed(args.model, args.data, args.output, naming(args))} embeddings")
        return
    print(f"{args.output}: {act(args.model, args.data, args.output, args.feature)} chunks of actions")


parser = ArgumentParser(prog="sightline predict", description="Apply a trained model to your own data.")
commands = parser.add_subparsers(dest="command", required=True)
for name, what, script, data, output in (
    ("embed", "embeddings of depth images", "extract_encoder",
     "folder of uint16 PNG or TIFF images, or of a recording; HDF5 file of sightline normalize; video of 16-bit depth",
     "file to write, .hdf5 or .parquet"),
    ("act", "actions for the frames of a recording", "train_fusion",
     "folder of a recording; HDF5 file of sightline pack_views; or folder of joints.npy and a video of each camera",
     "file to write, .parquet"),
    ("segment", "masks of images, videos, slices or volumes", "train_segmentation",
     "folder of images or of a recording, video, .npz of slices, or volumes (NIfTI, HDF5, .npz)",
     "folder to make: a PNG of class ids for each image, an .npz for each of slices, a NIfTI file for each volume; of "
     "one file of slices an .npz, of one volume a .nii.gz"),
):  # fmt: skip
    command = commands.add_parser(name, help=what)
    command.add_argument("model", type=Path, help=f"weights file written by sightline {script}")
    command.add_argument("data", type=Path, help=data)
    command.add_argument("output", type=Path, help=output)
add_naming(commands.choices["embed"])
add_features(commands.choices["act"])
commands.choices["segment"].add_argument(
    "--largest-component", choices=("none", "2d", "3d"), default="none", help="of each class, in a slice or a volume"
)

if __name__ == "__main__":
    run_stage(parser, Params, main)
