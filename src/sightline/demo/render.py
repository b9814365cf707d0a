"""Pictures of the demo: renders the states that `sightline.demo.simulate` left.

Another look (light, colours, image sizes, sensor noise) needs no new simulation. An episode's pictures depend only on
the states, the parameters and the episode's number. Finished episodes stay in the scratch folder until all are done,
so that an interrupted rendering continues.
"""

import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

import numpy as np
from PIL import Image
from pydantic import Field, model_validator

from sightline.core.errors import UserError
from sightline.core.files import atomic_output, claim, discard, file_sha256, fingerprint, scratch_folder
from sightline.core.parallel import unordered_map
from sightline.core.params import Section
from sightline.demo.appearance import CLASSES, draw_look, take_picture
from sightline.demo.camera import DepthSensor, Pinhole, Pose, World
from sightline.demo.scene import SIDES
from sightline.demo.states import StatesFile
from sightline.demo.tracing import expose, measure, open_view, place_lamp
from sightline.recording.layout import DepthInfo, RecordingInfo, write_recording_info

CAMERAS = ("left_wrist", "right_wrist", "global")
FOLDERS = (*(f"rgb/{camera}" for camera in CAMERAS), "depth", "masks")
GLOBAL_FIELD_OF_VIEW_DEG, WRIST_FIELD_OF_VIEW_DEG = 35.5, 72.0
SCENE_RANGE_MM = (500, 1300)  # from a hand held high to the table's far edge
NORMAL = np.array([round(NormalDist().inv_cdf((i + 0.5) / 256), 6) for i in range(256)])  # as likely as each other
WRIST_POSE = Pose(  # on the hand: in front of its housing, tilted towards the fingers
    np.array([0.075, 0.0, 0.021]), np.array([[0, 0.966, 0.259], [1, 0, 0], [0, 0.259, -0.966]])
)


class RenderParams(Section):
    """How the simulated recording looks."""

    seed: int = Field(0, ge=0, description="light, colours, placement of the camera, sensor noise")
    wrist_size: int = Field(84, ge=8, le=2048, description="height and width of the wrist pictures, pixels")
    global_size: int = Field(224, ge=8, le=2048, description="height and width of the global picture and mask, pixels")
    antialias: int = Field(2, ge=1, le=8, description="rays per pixel edge where the picture changes; 1 is off")
    lamp: float = Field(1.0, ge=0, le=10, description="strength of the lamp; the ambient light stays")
    camera_shift_m: float = Field(
        0.0, ge=-0.5, le=0.5, description="shift of the global camera to the robots' left, metres"
    )
    rgb_noise: float = Field(1.0, ge=0, le=64, description="sigma of the colour noise, grey levels of 255")
    depth_height: int = Field(128, ge=8, le=2048, description="height of the depth images, pixels")
    depth_width: int = Field(128, ge=8, le=2048, description="width of the depth images, pixels")
    depth_near_mm: int = Field(250, ge=1, le=65534, description="nearer pixels have no reading, millimetres")
    depth_far_mm: int = Field(1500, ge=2, le=65535, description="farther pixels have no reading, millimetres")
    depth_noise_mm: float = Field(
        1.0, ge=0, le=100, description="sigma at 1 m, millimetres; grows with the square of the distance"
    )
    depth_dropout: float = Field(0.002, ge=0, le=1, description="share of pixels without a reading, anywhere")

    @model_validator(mode="after")
    def _ordered(self) -> "RenderParams":
        if self.depth_near_mm >= self.depth_far_mm:
            raise ValueError(f"depth_near_mm must be below depth_far_mm ({self.depth_far_mm})")
        return self


@dataclass(frozen=True)
class _Job:
    params: RenderParams
    states: StatesFile
    number: int
    folder: Path  # of the episode, to be written
    folders: tuple[str, ...]  # below it


def render_demo(
    params: RenderParams, states_path: Path, root: Path, processes: int | None = None, only_depth: bool = False
) -> None:
    """Write the pictures and ``recording.json`` of the recording in ``root``; their bytes depend on the rest alone.

    Writes ``rgb/<camera>`` (uint8 RGB), ``depth`` (uint16 millimetres of the global camera, 0 = no reading) and
    ``masks`` (uint8 class ids of the global view), each file named ``<frame_id:06d>.png``.

    Args:
        states_path: states file written by `sightline.demo.simulate.simulate_demo`.
        processes: how many episodes to render at a time; None means one per CPU.
        only_depth: write no colour pictures and masks; the depth images are the same.

    Raises:
        UserError: missing or foreign states file, fewer than one process, or a path that cannot be written.
    """
    if root.exists() and not root.is_dir():
        raise UserError(f"{root}: is not a folder; choose another output path")
    states = StatesFile(states_path)
    code = [file_sha256(path) for path in sorted(Path(__file__).parent.glob("*.py"))]
    folders = ("depth",) if only_depth else FOLDERS
    key = fingerprint(params.model_dump(), file_sha256(states_path), code, folders)
    scratch = claim(scratch_folder("render", key))
    jobs = [_Job(params, states, number, scratch / name, folders) for number, name in enumerate(states.names)]
    to_do = [(job, states.steps) for job in jobs if not job.folder.is_dir()]  # earlier runs did the others
    frames = len(jobs) * states.steps
    for _ in unordered_map(_render_job, to_do, total=frames, unit="frame", title="render", processes=processes):
        pass
    for folder in folders:
        with atomic_output(root / folder) as temporary:
            temporary.mkdir()
            for job in jobs:
                shutil.copytree(job.folder / folder, temporary, copy_function=_link, dirs_exist_ok=True)
    write_recording_info(root / "recording.json", _recording_info(states, () if only_depth else CAMERAS))
    discard(scratch)


def _link(source: str, target: str) -> None:
    """Put a picture at a second place: many small copies would take half a minute."""
    try:
        os.link(source, target)
    except OSError:  # another disk, or one without links
        shutil.copyfile(source, target)


def _recording_info(states: StatesFile, cameras: tuple[str, ...]) -> RecordingInfo:
    depth = DepthInfo(unit_mm=1.0, invalid=(0,), height_range=SCENE_RANGE_MM)
    return RecordingInfo(fps=states.fps, cameras=cameras, joints=states.joints, classes=CLASSES, depth=depth)


def _render_job(job: _Job) -> None:
    with atomic_output(job.folder) as folder:
        for name in job.folders:
            (folder / name).mkdir(parents=True)
        _render_episode(job, folder)


def _render_episode(job: _Job, folder: Path) -> None:
    episode = job.states.episode(job.states.names[job.number])
    cameras = EpisodeCameras(job.params, job.number, episode.mjcf)
    for frame_id, qpos in zip(episode.frame_id, episode.qpos, strict=True):
        images = cameras.everything(qpos) if len(job.folders) > 1 else {"depth": cameras.depth(qpos)}
        for name, image in images.items():
            # run lengths alone: half the time of the usual search for repetitions, which noise lacks
            path = folder / name / f"{frame_id:06d}.png"
            Image.fromarray(image).save(path, compress_level=1, compress_type=zlib.Z_RLE)


class EpisodeCameras:
    """What the cameras of one episode see, frame after frame: looked through in order, the pictures of a recording.

    Each kind of picture has a random stream of its own for its noise: another size or lack of one picture does not
    change the noise of the others.

    Args:
        params: how the recording looks.
        number: of the episode.
        mjcf: its scene, MJCF text.

    Attributes:
        look: light, colours, and the pose of the global camera.
    """

    def __init__(self, params: RenderParams, number: int, mjcf: str) -> None:
        self.params = params
        self._rng = {
            purpose: np.random.default_rng([params.seed, number, 2 + stream])
            for stream, purpose in enumerate(("look", *FOLDERS))
        }
        self._world = World(mjcf)
        self.look = draw_look(self._world, self._rng["look"], params.lamp, params.camera_shift_m)
        self._global_sensor = Pinhole(params.global_size, params.global_size, GLOBAL_FIELD_OF_VIEW_DEG)
        self._wrist_sensor = Pinhole(params.wrist_size, params.wrist_size, WRIST_FIELD_OF_VIEW_DEG)
        self._depth_pinhole = Pinhole(params.depth_height, params.depth_width, GLOBAL_FIELD_OF_VIEW_DEG)
        self._depth_sensor = DepthSensor(
            params.depth_near_mm, params.depth_far_mm, params.depth_noise_mm, params.depth_dropout
        )
        self._deviates = NORMAL * params.rgb_noise

    def views(self, qpos: np.ndarray) -> dict[str, np.ndarray]:
        """Camera -> colour picture uint8 [H, W, 3], at MuJoCo's positions ``qpos`` [nq]."""
        return self._views(qpos)[0]

    def everything(self, qpos: np.ndarray) -> dict[str, np.ndarray]:
        """Folder of a recording -> image: `views`, ``depth`` (uint16 millimetres) and ``masks`` (uint8 class ids)."""
        views, mask = self._views(qpos)
        return {f"rgb/{camera}": view for camera, view in views.items()} | {"depth": self.depth(qpos), "masks": mask}

    def depth(self, qpos: np.ndarray) -> np.ndarray:
        """The depth image, uint16 millimetres, at MuJoCo's positions ``qpos`` [nq]."""
        self._world.place(qpos)
        geoms, camera = self._world.geoms(), self._depth_pinhole.at(self.look.global_camera)
        depth_m, facing, _ = measure(geoms, camera, open_view(geoms, camera))
        return self._depth_sensor.measure(depth_m, facing, self._rng["depth"])

    def _views(self, qpos: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The views, and class ids of the global one."""
        self._world.place(qpos)
        geoms = self._world.geoms()
        lamp = place_lamp(geoms, self.look.light)
        poses = {f"{side}_wrist": WRIST_POSE.on(self._world.body_pose(f"{side}_hand")) for side in SIDES}
        poses["global"] = self.look.global_camera
        views, met = {}, np.zeros(0)
        for camera in CAMERAS:
            sensor = self._global_sensor if camera == "global" else self._wrist_sensor
            colours, met = take_picture(geoms, self.look, lamp, sensor, poses[camera], self.params.antialias)
            rng = self._rng[f"rgb/{camera}"]
            views[camera] = expose(colours, rng.integers(0, 256, colours.size, np.uint8), self._deviates)
        return views, self.look.class_id[met]  # the global one is the last
