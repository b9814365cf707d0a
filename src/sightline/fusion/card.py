"""What a fusion model is, for its card."""

from sightline.fusion.network import NO_READING
from sightline.fusion.policy import PolicyConfig
from sightline.training.card import About


def about_policy(config: PolicyConfig) -> About:
    """Inputs and outputs with shape, unit and range."""
    cameras, size = config.cameras, config.image_size
    of_views = f"views uint8 [B, {len(cameras)}, 3, {size}, {size}], RGB, in this order: {', '.join(cameras)}"
    of_depth = (
        f"depth_images float32 [B, {config.depth}, {size}, {size}], as stages/normalize.py makes them, {NO_READING:g} "
        "where nothing was measured"
    )
    return About(
        what="Policy learnt from demonstrations: camera views and joints to a chunk of coming actions.",
        task="robotics",
        tags=("imitation-learning", config.objective),
        use="python -m sightline.predict act MODEL RECORDING actions.parquet" + " --feature PATH" * len(config.extras),
        inputs=(
            *([of_views] if cameras else []),
            *([of_depth] if config.depth else []),
            f"joints float32 [B, {len(config.joint_names)}] in the recording's units: {', '.join(config.joint_names)}",
            *(f"{name} float32 [B, {', '.join(map(str, shape))}]" for name, shape in config.precomputed.items()),
        ),
        outputs=(
            f"actions float32 [B, {config.steps}, {config.actions}] in the recording's units, "
            f"{config.stride} frame(s) between steps",
        ),
        limits=(
            "It imitates: it has no notion of the task, of contact or of danger. Bound its actions before a robot "
            "executes them.",
            "Measured on recorded episodes only, never in closed loop: small errors add up on a robot.",
            "Other cameras, places of cameras, joints or units of joints need another training.",
        ),
    )
