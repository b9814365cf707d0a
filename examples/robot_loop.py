"""A trained policy drives a robot: observe, decide, act, at the rate of the recording that it learnt from.

The simulated robot stands in for yours; replace `Robot` by your own cameras, encoders and controllers:

    python examples/robot_loop.py models/fusion/actions/stacked.safetensors
"""

import time
from argparse import ArgumentParser
from pathlib import Path

import numpy as np

from sightline.core.errors import UserError
from sightline.demo.render import EpisodeCameras, RenderParams
from sightline.demo.simulate import FPS, SimulateParams, Simulation
from sightline.fusion import Policy


class Robot:
    """Two arms at a table, in a scene that no recording has."""

    def __init__(self) -> None:
        self.simulation = Simulation(SimulateParams(), number=100_000)
        self.cameras = EpisodeCameras(RenderParams(), 100_000, self.simulation.mjcf)

    def pictures(self) -> dict[str, np.ndarray]:
        """Camera -> uint8 [H, W, 3]."""
        return self.cameras.views(self.simulation.qpos())

    def joints(self) -> np.ndarray:
        """Joint states [16]: rad, grippers 0 (closed) to 1 (open)."""
        return self.simulation.measure()

    def move(self, action: np.ndarray) -> None:
        """Command joints [16], in the same units."""
        self.simulation.apply(action)


def main(weights: Path, frames: int, fps: float) -> None:
    policy, robot = Policy.load(weights), Robot()
    policy.reset()  # before each episode
    due = time.monotonic()
    for frame in range(frames):
        action = policy.act({"images": robot.pictures(), "joints": robot.joints()})
        robot.move(action)
        due += 1 / fps
        if (late := time.monotonic() - due) > 0:
            print(f"frame {frame}: {1e3 * late:.0f} ms late")
        time.sleep(max(0, -late))
    print(f"{frames} frames; the ball is {'' if robot.simulation.success() else 'not '}on the plate")


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("weights", type=Path, help="safetensors file written by sightline train_fusion")
    parser.add_argument("--frames", type=int, default=75, help="length of the episode")
    parser.add_argument("--fps", type=float, default=FPS, help="frames per second, those of the recording")
    args = parser.parse_args()
    try:
        main(args.weights, args.frames, args.fps)
    except UserError as error:
        raise SystemExit(f"robot_loop: error: {error}") from None
