"""Three views as one encodes them first: a ResNet-18 of torchvision for each, features beside each other."""

import torch
from torch import Tensor, nn
from torchvision.models import resnet18


class ThreeResNets(nn.Module):
    """Three views [B, 3, H, W] and joints [B, J] -> [B, 256]."""

    def __init__(self, joint_dim: int = 16) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(resnet18() for _ in range(3))
        for trunk in self.trunks:
            trunk.fc = nn.Identity()
        self.joints = nn.Sequential(nn.Linear(joint_dim, 64), nn.ReLU())
        self.join = nn.Linear(3 * 512 + 64, 256)

    def forward(self, left: Tensor, right: Tensor, whole: Tensor, joints: Tensor) -> Tensor:
        seen = [trunk(view) for trunk, view in zip(self.trunks, (left, right, whole), strict=True)]
        return self.join(torch.cat([*seen, self.joints(joints)], dim=1))
