"""What a depth autoencoder is, for its card."""

from sightline.depth.weights import Header
from sightline.training.card import About


def about_autoencoder(header: Header) -> About:
    """Inputs and outputs with shape, unit and range."""
    network, done = header.network, header.preprocessing
    near, far = done.height_range
    millimetres = f"{near * done.unit_mm:g} to {far * done.unit_mm:g} mm"
    raw = "depth images" if network.input_channels == 1 else "images of 8-bit channels"
    return About(
        what="Autoencoder of depth images: a ResNet with self-attention. Its encoder makes embeddings.",
        task="image-feature-extraction",
        tags=("depth", "autoencoder", "robotics"),
        use="python stages/extract_encoder.py MODEL --output encoder.safetensors",
        inputs=(
            f"{raw}, uint16, any size; counts {near} to {far} ({millimetres}), {list(done.invalid)} mean no reading",
            f"inside: float32 [N, {network.input_channels}, 128, 128] in [-1, 1], holes filled",
        ),
        outputs=(f"embeddings float32 [N, {network.latent_dim}], no unit, not of unit length",),
        limits=(
            "Distances between embeddings are those of pictures, not of situations: it was trained to reconstruct.",
            "Depth beyond the height range is clipped to it; another range, unit or code of invalid pixels needs "
            "another training.",
        ),
    )
