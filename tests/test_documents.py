"""The five documents: every command and snippet as they give them, with other paths, sizes and imports."""

import re

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, depth_folder, only_error_line, photo_folder
from encoders import save_autoencoder
from pages import block, run
from PIL import Image
from torch import nn

from sightline.depth.weights import extract_encoder

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def place(tmp_path):
    """A folder with the project's scripts."""
    for name in ("stages", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The working directory of the snippets: an encoder, an autoencoder and nothing else."""
    files = tmp_path / "files"
    files.mkdir()
    save_autoencoder(files / "autoencoder.safetensors", latent_dim=768)
    extract_encoder(files / "autoencoder.safetensors", files / "encoder_weights.pth")
    monkeypatch.chdir(files)
    return files


@pytest.mark.slow
def test_001_and_000_train_evaluate_and_extract_from_a_folder(place):
    depth_folder(place / "data", 60)
    small = {"/path/to/your/data": "data", "500 4500": "600 1400", "--num_epochs 100": "--num_epochs 1",
             "--num_epochs 120": "--num_epochs 2 --batch_size 32 --patience 20 --learning_rate 1e-4 --augment",
             "--patience 20 \\": "--patience 20 --checkpoint-every 1 \\"}  # fmt: skip
    said = run(block("documents-autoencoder"), place, **small)
    listed = {"config.json", "best_model.pth", "best_model_weights.pth", "latest_checkpoint.pth", "tensorboard"}
    assert listed | {"checkpoint_epoch_1.pth"} <= {path.name for path in (place / "outputs").iterdir()}
    pictures = {"reconstruction_results.png", "latent_analysis.png", "interpolation.png"}
    assert {path.name for path in (place / "evaluation_results").iterdir()} == {
        "evaluation_results.json", "metrics.json", *pictures,
    }  # fmt: skip
    assert "max |z_autoencoder - z| = 0.0" in said
    (stored,) = (place / ".scratch/cache/normalized").iterdir()
    with h5py.File(stored / "depth.hdf5") as file:
        assert "[600,1400]" in file.attrs["preprocessing"].replace(" ", ""), (
            "the range of the training is used throughout"
        )
    asked = "--model_path outputs/best_model.pth --data_dir data --interpolate --output_dir asked"
    run(f"python stages/evaluate.py {asked}", place)
    assert [path.name for path in (place / "asked").iterdir()] == ["interpolation.png"]
    run("python stages/extract_encoder.py outputs/best_model.pth && python examples/semantic_encoder.py", place)


@pytest.mark.slow
def test_004_grids_of_a_split_of_coco(place):
    photo_folder(place / "datasets/coco/images/train2014", [9, 12, 581929])
    photo_folder(place / "datasets/coco/images/val2014", [3])
    random = {"=openai": "=random", "ViT-B-16-quickgelu": "ViT-B-32-quickgelu"}
    run(block("documents-grids"), place, **{"ViT-B/16": "ViT-B/32 --pretrained random"}, **random)
    f = h5py.File(place / "features/coco_train_clip_vitb16.hdf5", "r")  # as the document reads it
    first_key = next(iter(f.keys()))
    features = f[first_key][()]
    assert features.shape == (49, 768)
    x = "COCO_train2014_000000581929.jpg"
    image_id = int(x.split("_")[-1].split(".")[0])
    precomp_data = f[f"{image_id}_grids"][()].astype(np.float32)
    assert precomp_data.shape == (49, 768)
    assert "3_grids" not in f, "of another split"
    f.close()
    folder = "datasets/coco/images/train2014"
    run(f"sightline clip_grids {folder} --model ViT-B/32 b.hdf5 --pretrained random --grid 1", place)
    assert (place / "b.hdf5").is_file(), "options may stand between the paths"


def test_000_the_encoder(files):
    from sightline.depth import SemanticEncoder, create_semantic_encoder

    encoder = SemanticEncoder(
        input_channels=1, latent_dim=768, pretrained_path="encoder_weights.pth", freeze_weights=False
    )
    encoder = create_semantic_encoder(pretrained_path="encoder_weights.pth", freeze_weights=True)
    x = torch.randn(4, 1, 128, 128).clamp(-1, 1)
    embeddings = encoder.encode(x)
    assert embeddings.shape == (4, 768)
    encoder.load_pretrained_weights("encoder_weights.pth")
    encoder.freeze_parameters(True)
    encoder.freeze_parameters(False)
    encoder.freeze_layers(["stem", "layer1", "layer2"])
    encoder.save_encoder_weights("output_weights.pth")
    numpy_input = np.random.default_rng(0).integers(500, 1500, (3, 40, 50), np.uint16)
    assert encoder.encode_numpy(numpy_input, normalize=True).shape == (3, 768)
    assert encoder.encode_batch(x, batch_size=16).shape == (4, 768)
    assert encoder.count_parameters() > encoder.count_parameters(only_trainable=True) > 0
    info = encoder.get_model_info()
    assert f"{info['total_parameters']:,}"
    assert f"{info['trainable_parameters']:,}"
    assert str(encoder)
    assert any(not param.requires_grad for name, param in encoder.named_parameters())
    if (input_tensor := x[:, 0]).ndim == 3:
        assert encoder.encode(input_tensor.unsqueeze(1)).shape == (4, 768)
    assert SemanticEncoder(device="cpu").encode(x[:1]).shape == (1, 768)


def test_000_a_model_on_top_and_similarity(files):
    from sightline.depth import SemanticEncoder

    class MyModel(nn.Module):
        def __init__(self, num_classes: int) -> None:
            super().__init__()
            self.backbone = SemanticEncoder(pretrained_path="encoder_weights.pth", freeze_weights=False)
            self.backbone.freeze_layers(["stem", "layer1"])
            self.classifier = torch.nn.Linear(768, num_classes)

        def forward(self, x):
            features = self.backbone.encode(x)
            return self.classifier(features)

    images = torch.rand(2, 1, 128, 128)
    MyModel(3)(images).sum().backward()
    encoder = SemanticEncoder(pretrained_path="encoder_weights.pth")
    with torch.no_grad():
        feat1, feat2 = encoder.encode(images[:1]), encoder.encode(images[1:])
        similarity = torch.nn.functional.cosine_similarity(feat1, feat2)
    assert -1 <= float(similarity) <= 1


def test_001_images_to_latents_and_back(files):
    from sightline.depth import ModelEvaluator

    evaluator = ModelEvaluator("autoencoder.safetensors")
    image = torch.randn(1, 1, 128, 128).clamp(-1, 1)
    latent_vector = evaluator.encode_image(image)
    assert latent_vector.shape == (1, 768)
    assert evaluator.decode_latent(latent_vector).shape == (1, 1, 128, 128)


def test_002_one_encoder_of_nine_channels():
    from sightline.fusion import ImageJointEncoder, ResNet18Encoder

    image_encoder = ResNet18Encoder(output_dim=256, pretrained=False, in_channels=9)
    left_img, right_img, global_img = torch.rand(3, 2, 3, 84, 84)
    concatenated_img = torch.cat([left_img, right_img, global_img], dim=1)
    assert image_encoder(concatenated_img).shape == (2, 256)
    encoder = ImageJointEncoder(joint_dim=16, image_feature_dim=256, fusion_dim=256)
    fused_feat = encoder(left_img, right_img, global_img, torch.rand(2, 16))
    assert fused_feat.shape == (2, 256)


@pytest.mark.parametrize("use_learned_selector", [False, True])
def test_003_the_prototype_manager_in_a_training(use_learned_selector):
    from sightline.segmentation import ContrastivePrototypeManager

    prototype_manager = ContrastivePrototypeManager(
        num_classes=2, feature_dim=64, elements_per_class=32, use_learned_selector=use_learned_selector
    )
    features = torch.randn(200, 64, requires_grad=True)
    predictions, labels = torch.randn(200, 2), torch.randint(0, 2, (200,))
    for _ in range(2):  # the first call fills the memory
        loss, loss_dict = prototype_manager.update_and_compute_loss(
            features=features, predictions=predictions, labels=labels,
            contrastive_weight=1.0, intra_weight=0.1, inter_weight=0.1,
        )  # fmt: skip
    loss.backward()
    assert features.grad.abs().sum() > 0
    assert all(np.isfinite(float(value)) for value in loss_dict.values())
    prototype_loss, _ = prototype_manager.update_and_compute_loss(
        features=features, predictions=predictions, labels=None, is_labeled=False,
        contrastive_weight=1.0, intra_weight=0.1, inter_weight=0.1,
    )  # fmt: skip
    assert prototype_loss.isfinite()
    prototype_manager.update_memory({0: features[labels == 0]})
    assert prototype_manager.contrastive_class_to_class_learned_memory(features, labels).isfinite()
    feature_selectors, memory_selectors = prototype_manager.get_selectors()
    selector_params = []
    if feature_selectors is not None:
        selector_params.extend(feature_selectors.parameters())
    if memory_selectors is not None:
        selector_params.extend(memory_selectors.parameters())
    assert bool(selector_params) is use_learned_selector
    if selector_params:
        torch.optim.Adam(selector_params, lr=0.01 * 0.1)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train_autoencoder.py data.hdf5 --data_dir data", "leave out DATA and WEIGHTS, or --data-dir"),
        ("train_autoencoder.py data.hdf5", "name DATA, WEIGHTS and --metrics-dir FOLDER; or --data-dir FOLDER"),
        ("train_autoencoder.py a b --metrics-dir c --height_range 1 2", "--height-range goes with --data-dir"),
        ("train_autoencoder.py --data_dir nothing", "nothing: no such folder"),
        ("train_autoencoder.py --data_dir data --height_range 9 2", r"height_range: .*near < far"),
        ("train_autoencoder.py --data_dir data", r"1 training and 0 validation frames; .*data\.split\.guard"),
        ("evaluate.py weights --data_dir data", "name WEIGHTS, DATA and OUTPUT; or --model-path"),
        ("evaluate.py --model_path nothing.pth --data_dir data --output_dir out", "nothing.pth: no such file"),
        ("clip_grids.py images", "folders of photographs, then the file to write"),
        ("clip_grids.py images out.hdf5 --image-root images", "images: leave it out, or --image-root"),
        ("clip_grids.py --image-root images --split train", "--image-root and --output-path go together"),
        ("clip_grids.py --image-root images --split train --output-path a.hdf5", "images/train: no such folder"),
    ],
)
def test_a_mistake_in_the_documents_options_is_one_line(stage, tmp_path, command, message):
    (tmp_path / "data").mkdir()
    Image.fromarray(np.ones((4, 4), np.uint16)).save(tmp_path / "data/000000.png")
    name, *arguments = command.split()
    done = stage(name.removesuffix(".py"), *arguments)
    line = only_error_line(done)
    assert re.search(message, line), line
