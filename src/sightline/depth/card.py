"""What a depth autoencoder is, for its card."""

from sightline.depth.weights import Header
from sightline.training.card import About


def about_autoencoder(header: Header, inverse_dynamics: bool) -> About:
    """Inputs and outputs with shape, unit and range; ``inverse_dynamics``: whether it was trained to tell joints."""
    network, done = header.network, header.preprocessing
    near, far = done.height_range
    millimetres = f"{near * done.unit_mm:g} to {far * done.unit_mm:g} mm"
    raw = "depth images" if network.input_channels == 1 else "images of 8-bit channels"
    told = "reconstruction and by inverse dynamics" if inverse_dynamics else "reconstruction alone"
    parts = f"the first {network.patch_dim} are a linear code of patches, the last {network.scene_dim} the scene's"
    return About(
        what=f"Autoencoder of depth images: a ResNet with self-attention, beside a code of patches, trained by {told}. "
        "Its encoder makes embeddings.",
        task="image-feature-extraction",
        tags=("depth", "autoencoder", "robotics"),
        use="python stages/extract_encoder.py MODEL --output encoder.safetensors",
        inputs=(
            f"{raw}, uint16, any size; counts {near} to {far} ({millimetres}), {list(done.invalid)} mean no reading",
            f"inside: float32 [N, {network.input_channels}, 128, 128] in [-1, 1], holes filled",
        ),
        outputs=(f"embeddings float32 [N, {network.latent_dim}], no unit, not of unit length; {parts}",),
        limits=(
            "Distances between embeddings are partly those of pictures, because the patches only reconstruct; "
            "`SemanticEncoder.encode_parts` gives the scene numbers alone.",
            "Depth beyond the height range is clipped to it; another range, unit or code of invalid pixels needs "
            "another training.",
        ),
    )
