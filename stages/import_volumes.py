"""Import volumes (NIfTI, HDF5, .npz) with their labels as one file of slices and volumes for the segmentation."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.importers.volumes import ImportVolumesParams, import_volumes


class Params(Section):
    import_volumes: ImportVolumesParams = ImportVolumesParams()


def main(args: Namespace, params: Params) -> None:
    print(import_volumes(args.source, args.target, params.import_volumes))


parser = ArgumentParser(description=__doc__)
parser.add_argument("source", type=Path, help="folder of volumes, with .list files or without; or one file")
parser.add_argument("target", type=Path, help="HDF5 file to write, as data/volumes/hearts.hdf5")

if __name__ == "__main__":
    run_stage(parser, Params, main)
