"""One action of a policy that predicts in every frame: from pictures as cameras give them, and joints.

    python benchmarks/acting.py [--quick]

Three cameras of 640x480, 16 joints, chunks of 16 actions. A robot at 30 Hz leaves 33 ms for it. The other way is what
one would write first: each picture resized by torchvision, a ResNet-18 for each view, float32, default memory format.
"""

import numpy as np
import torch
import torchvision.transforms.v2.functional as transforms
from measuring import Bench, Multiplication, Row, command, in_turn, per
from peers.three_resnets import ThreeResNets
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sightline.fusion import FusionPolicy, Policy
from sightline.fusion.policy import PolicyConfig
from sightline.training.processes import process_device

CAMERAS, JOINTS, STEPS, ACTIONS = ("left_wrist", "right_wrist", "global"), 16, 16, 16


def config(size: int = 84) -> PolicyConfig:
    """Of a policy with the default design."""
    names = tuple(f"joint_{i}" for i in range(JOINTS))
    return PolicyConfig(cameras=CAMERAS, image_size=size, joint_names=names, actions=ACTIONS, steps=STEPS)


class Plain:
    """The other way."""

    def __init__(self) -> None:
        self.encoder = ThreeResNets(JOINTS).eval().to(process_device())
        self.head = nn.Linear(256, STEPS * ACTIONS).to(process_device())

    @torch.inference_mode()
    def act(self, pictures: list[np.ndarray], joints: np.ndarray) -> np.ndarray:
        """The first action of a chunk."""
        views = []
        for picture in pictures:
            image = torch.from_numpy(picture).permute(2, 0, 1).to(process_device())
            views.append(transforms.resize(image, [84, 84], antialias=True)[None] / 255)
        state = torch.from_numpy(joints)[None].to(process_device())
        return self.head(self.encoder(*views, state)).cpu().numpy()[0, :ACTIONS]


def rows(bench: Bench) -> list[Row]:
    """One row: the time of an action."""
    torch.manual_seed(0)
    policy, plain, rng = Policy(FusionPolicy(config()), replan_every=1), Plain(), np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (480, 640, 3), dtype=np.uint8) for _ in CAMERAS]
    joints, count = rng.normal(size=JOINTS).astype(np.float32), bench.size(30, 1)
    observation = {"images": dict(zip(CAMERAS, pictures, strict=True)), "joints": joints}
    multiply = Multiplication(bench, torch.float32)
    ways = {
        "policy": lambda: [policy.act(observation) for _ in range(count)],
        "plain": lambda: [plain.act(pictures, joints) for _ in range(count)],
        "bound": multiply,
    }
    seconds = in_turn(ways, bench.size(9, 1))
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        policy.model(*(x.to(process_device()) for x in (torch.zeros(1, 3, 3, 84, 84), torch.zeros(1, JOINTS))))
    least = multiply.least_ms(seconds["bound"], counter.get_total_flops())
    between = "resizing three pictures, convolutions of small maps, reading 11.8 M weights for one sample"
    work, peer = "an action, three cameras of 640x480, a prediction each", "resized by torchvision, three ResNet-18s"
    return [Row(work, "ms", per(seconds["policy"], count), per(seconds["plain"], count), peer, least,
                "peak arithmetic", between)]  # fmt: skip


if __name__ == "__main__":
    command(__doc__, rows)
