"""A trained policy as a ROS 2 node: pictures and joint states in, joint commands out.

    python examples/ros2_node.py policy.onnx --image left_wrist=/left/image_raw --image global=/top/image_raw \
        --joints /joint_states --command /commands --rate 10

It subscribes to `sensor_msgs/Image` (rgb8 or bgr8) and `sensor_msgs/JointState`, and publishes
`std_msgs/Float64MultiArray`. What decides, `Latest`, needs no ROS. Bound the commands in your controller.
"""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import numpy as np

from sightline.core.errors import UserError
from sightline.fusion import Policy


class Latest:
    """The latest picture of each camera and the latest joints, and the action that follows from them.

    Args:
        policy: what decides.
        oldest: seconds after which a picture or the joints are too old to act on.
    """

    def __init__(self, policy: Policy, oldest: float = 0.5) -> None:
        self.policy, self.oldest = policy, oldest
        self.seen: dict[str, tuple[float, np.ndarray]] = {}  # camera, or "joints" -> when it came, what it was

    def on_image(self, camera: str, message: Any, now: float) -> None:
        """Take a `sensor_msgs/Image`. Raises `UserError` for an encoding other than rgb8 and bgr8."""
        if message.encoding not in ("rgb8", "bgr8"):
            raise UserError(f"{camera}: images of encoding {message.encoding}; rgb8 or bgr8 is needed")
        rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
        pixels = rows[:, : 3 * message.width].reshape(message.height, message.width, 3)
        self.seen[f"image {camera}"] = now, pixels if message.encoding == "rgb8" else pixels[..., ::-1]

    def on_joints(self, message: Any, now: float) -> None:
        """Take a `sensor_msgs/JointState`, its joints in any order. Raises `UserError` where one is missing."""
        positions = dict(zip(message.name, message.position, strict=False))  # some publish names without positions
        names = self.policy.config.joint_names
        if missing := [name for name in names if name not in positions]:
            raise UserError(f"joints: no {missing[0]} among {', '.join(positions)}; rename your robot's joints")
        self.seen["joints"] = now, np.array([positions[name] for name in names], np.float32)

    def act(self, now: float) -> np.ndarray | str:
        """The action [A], or, where there is none, why: what is missing or too old."""
        needed = ["joints", *(f"image {camera}" for camera in self.policy.cameras)]
        for name in needed:
            if name not in self.seen:
                return f"waiting for {name}"
            if now - self.seen[name][0] > self.oldest:
                self.policy.reset()  # what was planned does not fit any more
                return f"{name} is {now - self.seen[name][0]:.1f} s old"
        images = {camera: self.seen[f"image {camera}"][1] for camera in self.policy.cameras}
        return self.policy.act({"images": images, "joints": self.seen["joints"][1]})


def main() -> None:
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("policy", type=Path, help="file of weights, or .onnx")
    parser.add_argument("--image", action="append", default=[], metavar="CAMERA=TOPIC")
    parser.add_argument("--joints", default="/joint_states", metavar="TOPIC")
    parser.add_argument("--command", default="/commands", metavar="TOPIC")
    parser.add_argument("--rate", type=float, default=10, help="actions a second: that of the recording")
    args = parser.parse_args()
    try:
        import rclpy
        from rclpy.node import Node
        from sensor_msgs.msg import Image, JointState
        from std_msgs.msg import Float64MultiArray
    except ImportError as error:
        raise SystemExit(f"ros2_node: error: {error.name} is missing; source your ROS 2 installation first") from None

    latest, topics = Latest(Policy.load(args.policy)), dict(text.partition("=")[::2] for text in args.image)
    for camera in latest.policy.cameras:
        if not topics.get(camera):
            raise UserError(f"--image {camera}=TOPIC: name its topic; cameras are {', '.join(latest.policy.cameras)}")
    rclpy.init()
    node = Node("sightline")
    commands = node.create_publisher(Float64MultiArray, args.command, 1)

    def now() -> float:
        return node.get_clock().now().nanoseconds / 1e9

    def tick() -> None:
        action = latest.act(now())
        if isinstance(action, str):
            node.get_logger().warning(action, throttle_duration_sec=1.0)
        else:
            commands.publish(Float64MultiArray(data=action.tolist()))

    for camera, topic in topics.items():
        node.create_subscription(Image, topic, lambda message, name=camera: latest.on_image(name, message, now()), 1)
    node.create_subscription(JointState, args.joints, lambda message: latest.on_joints(message, now()), 1)
    node.create_timer(1 / args.rate, tick)
    rclpy.spin(node)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"ros2_node: error: {error}") from None
