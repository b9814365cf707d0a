"""Training the autoencoder: a killed run ends as one never killed, the order of data, bad input, and what it learns."""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT, depth_folder, only_error_line
from pydantic import ValidationError
from torchvision.models import vgg16

from sightline.depth.augmentation import CHANCES, augment_images
from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.normalize import NormalizeParams, normalize_depth
from sightline.depth.perceptual import PerceptualLoss
from sightline.depth.store import DepthStore
from sightline.depth.training import DepthImages, TrainParams, gradient_difference
from sightline.depth.weights import load_weights
from sightline.recording.split import SplitParams
from sightline.training.fitting import configure_optimizer
from sightline.training.gradients import clip_gradients
from sightline.training.order import Draw, EpochBatches

SCRIPT = ROOT / "stages/train_autoencoder.py"
FAST = {"epochs": 3, "batch_size": 4, "lr": 1e-3, "precision": "fp32", "latent_dim": 128, "width": 16}
SETTINGS = [part for key, value in FAST.items() for part in ("--set", f"train.{key}={value}")]


@pytest.fixture
def data(tmp_path):
    folder = depth_folder(tmp_path / "in", 12)
    params = NormalizeParams(height_range=(500, 1500))
    normalize_depth(folder, tmp_path / "depth.hdf5", params, split=SplitParams(guard=0), processes=1)
    return tmp_path / "depth.hdf5"


def test_a_killed_training_ends_with_the_weights_of_one_never_killed(data, stage, tmp_path, scratch_root):
    whole = stage("train_autoencoder", data, "whole.safetensors", "--metrics-dir", "whole", *SETTINGS)
    assert whole.returncode == 0, whole.stderr
    assert list((scratch_root / "train_autoencoder").iterdir()) == []  # nothing is left of a success

    command = [
        sys.executable,
        SCRIPT,
        data,
        "killed.safetensors",
        "--metrics-dir",
        "killed",
    ]
    process = subprocess.Popen([*command, *SETTINGS], cwd=tmp_path, env=os.environ, stderr=subprocess.DEVNULL)
    while not list((scratch_root / "train_autoencoder").glob("*/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "killed.safetensors").exists()

    other = stage(
        "train_autoencoder", data, "other.safetensors", "--metrics-dir", "other", *SETTINGS, "--set", "seed=1"
    )
    assert "continuing" not in other.stderr  # another seed never sees the killed run
    resumed = stage("train_autoencoder", data, "killed.safetensors", "--metrics-dir", "killed", *SETTINGS)
    assert resumed.returncode == 0, resumed.stderr
    assert "continuing an interrupted run" in resumed.stderr
    for name in (".safetensors", "/metrics.json", "/curves.csv"):
        assert (tmp_path / f"killed{name}").read_bytes() == (tmp_path / f"whole{name}").read_bytes()
    assert (tmp_path / "other.safetensors").read_bytes() != (tmp_path / "whole.safetensors").read_bytes()
    assert len((tmp_path / "whole/curves.csv").read_text().splitlines()) == 1 + FAST["epochs"]
    metrics = json.loads((tmp_path / "whole/details.json").read_text())
    assert metrics["val"]["rmse"] < metrics["val_mean_image"]["rmse"]
    assert metrics["val"]["rmse_mm"] == pytest.approx(500 * metrics["val"]["rmse"], rel=1e-4)


def test_processes_started_by_a_launcher_train_together(data, tmp_path):
    options = ["--standalone", "--nproc-per-node=2", SCRIPT, data, "two.safetensors", "--metrics-dir", "two"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, *SETTINGS, "--set", "train.epochs=1"]
    result = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert load_weights(tmp_path / "two.safetensors", "autoencoder").header.kind == "autoencoder"


@pytest.mark.parametrize(
    ("number", "status", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_a_training_without_output_or_traceback(data, tmp_path, scratch_root, number, status, word):
    command = [
        sys.executable,
        SCRIPT,
        data,
        "a.safetensors",
        "--metrics-dir",
        "m",
        *SETTINGS,
        "--set",
        "train.epochs=99",
    ]
    process = subprocess.Popen(
        command, cwd=tmp_path, env=os.environ, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # background jobs of a shell ignore Ctrl-C
    )  # fmt: skip
    while not list((scratch_root / "train_autoencoder").glob("*/last.ckpt")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=10)
    assert process.returncode == status
    last = rf"train_autoencoder.py: {word}; run it again to continue \(\d+ of 99 epochs are kept\)"
    assert re.fullmatch(last, errors.splitlines()[-1])
    assert list((scratch_root / "train_autoencoder").glob("*/last.ckpt"))
    assert "Traceback" not in errors
    assert not (tmp_path / "a.safetensors").exists()


def test_early_stopping_ends_a_training_that_gets_no_better(data, stage, tmp_path):
    options = ["--set", "train.lr=1e-12", "--set", "train.patience=1", "--set", "train.epochs=50"]
    result = stage("train_autoencoder", data, "a.safetensors", "--metrics-dir", "m", *SETTINGS, *options)
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "m/details.json").read_text())["epochs"] < 10


def test_the_order_is_a_function_of_seed_and_epoch_and_covers_every_row():
    batches = EpochBatches(np.arange(100, 130), batch_size=8, seed=5, chances=3)

    def epoch(number: int) -> list[tuple[list[int], list[list[float]]]]:
        batches.set_epoch(number)
        return [(draw.rows.tolist(), draw.chances.tolist()) for draw in batches]

    third = epoch(3)
    assert epoch(4) != third == epoch(3)
    assert [len(rows) for rows, _ in third] == [8, 8, 8, 6]
    assert len(batches) == 4
    assert sorted(row for rows, _ in third for row in rows) == list(range(100, 130))
    chances = np.concatenate([chances for _, chances in third])
    assert chances.shape == (30, 3)
    assert len(np.unique(chances)) == 90
    assert chances.min() >= 0
    assert chances.max() < 1


def test_processes_share_an_epoch_without_overlap():
    shares = [EpochBatches(np.arange(21), 4, 0, rank=rank, world_size=2) for rank in (0, 1)]
    seen = [[int(row) for draw in share for row in draw.rows] for share in shares]
    assert len(seen[0]) == len(seen[1]) == 10  # as many steps in each, or they would wait for each other
    assert not set(seen[0]) & set(seen[1])


def test_a_batch_of_one_is_left_out():
    assert [len(draw.rows) for draw in EpochBatches(np.arange(9), 4, 0)] == [4, 4]


def test_the_network_starts_as_the_cosine_code_and_loses_nothing_of_a_smooth_image():
    network = Autoencoder(NetworkConfig()).eval()
    ramp = torch.linspace(-0.9, 0.9, 128).expand(1, 1, 128, 128).contiguous()
    with torch.inference_mode():
        reconstruction, latent = network(ramp)
    assert latent.shape == (1, 768)
    assert (reconstruction - ramp).abs().max() < 0.01


@pytest.mark.parametrize(
    "config",
    [
        NetworkConfig(),
        NetworkConfig(input_channels=3, latent_dim=64, width=16),
        NetworkConfig(latent_dim=128, width=16, head="flat", patch_path="linear"),
        NetworkConfig(input_channels=3, latent_dim=192, width=16),
        NetworkConfig(latent_dim=100, scene_dim=100, width=16),
        NetworkConfig(latent_dim=128, scene_dim=0, width=16),
    ],
)
def test_shapes_and_range(config):
    network = Autoencoder(config)
    reconstruction, latent = network(torch.randn(2, config.input_channels, 128, 128))
    assert reconstruction.shape == (2, config.input_channels, 128, 128)
    assert latent.shape == (2, config.latent_dim)
    assert reconstruction.abs().max() <= 1
    reconstruction.square().mean().backward()
    if not config.patch_dim:  # with patches the ends start at zero, and what lies before them gets its gradient later
        assert all(parameter.grad.abs().sum() > 0 for parameter in network.encoder.layer4.parameters())


def test_a_head_that_keeps_positions_needs_as_many_numbers():
    with pytest.raises(ValidationError, match="scene_dim must be a multiple of 64 with head flat, not 100"):
        TrainParams(latent_dim=100, scene_dim=100, head="flat")
    with pytest.raises(ValidationError, match="scene_dim must be at most latent_dim, 32, not 64"):
        TrainParams(latent_dim=32)


def test_parameters_of_older_versions_say_what_to_write_now():
    with pytest.raises(ValidationError, match=r"patch_share is gone: .*leave it out"):
        TrainParams.model_validate({"patch_share": 0.5})
    with pytest.raises(ValidationError, match="patch_path none is now scene_dim, with the value of latent_dim"):
        TrainParams.model_validate({"patch_path": "none"})


def test_the_gradient_difference_sees_slopes_between_valid_neighbours_only():
    error = torch.zeros(1, 1, 4, 4)
    error[..., 2:] = 0.5  # one step of 0.5 in each row: 4 of 12 + 12 neighbours
    everywhere = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    assert gradient_difference(error, everywhere) == pytest.approx(4 * 0.5 / 24)
    valid = everywhere.clone()
    valid[..., 2] = False
    assert gradient_difference(error, valid) == 0
    assert gradient_difference(error, ~everywhere) == 0


@pytest.mark.parametrize("optimizer", ["AdamW", "Adam", "SGD"])
@pytest.mark.parametrize("scheduler", ["CosineAnnealingLR", "constant"])
def test_the_learning_rate_rises_then_takes_its_course(optimizer, scheduler):
    params = TrainParams(optimizer=optimizer, scheduler=scheduler, lr=0.1)
    weight = torch.nn.Parameter(torch.ones(1))
    configured = configure_optimizer([weight], params, steps=100)
    assert type(configured["optimizer"]).__name__ == optimizer
    rates = []
    for _ in range(100):
        rates.append(configured["optimizer"].param_groups[0]["lr"])
        configured["optimizer"].step()
        configured["lr_scheduler"]["scheduler"].step()
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[50] == pytest.approx(0.1 if scheduler == "constant" else 0.0541, abs=1e-3)
    assert rates[-1] == pytest.approx(0.1 if scheduler == "constant" else 0, abs=1e-3)


def test_other_ways_of_training_run(data, stage, tmp_path):
    ways = ["optimizer=SGD", "scheduler=constant", "accumulate=2", "head=flat", "gradient_weight=0.5", "precision=bf16"]
    options = [part for way in (*ways, "epochs=1") for part in ("--set", f"train.{way}")]
    result = stage("train_autoencoder", data, "a.safetensors", "--metrics-dir", "m", *SETTINGS, *options)
    assert result.returncode == 0, result.stderr
    assert load_weights(tmp_path / "a.safetensors", "autoencoder").header.network.head == "flat"


@pytest.mark.slow
def test_a_run_by_hand_keeps_its_checkpoints_and_another_starts_from_one(data, stage, tmp_path):
    flags = [
        "--num_epochs",
        2,
        "--batch-size",
        4,
        "--latent_dim",
        128,
        "--set",
        "train.width=16",
        "--no-augment",
        "--learning_rate",
        "1e-3",
    ]
    first = stage("train_autoencoder", data, "a.safetensors", "--metrics-dir", "a", *flags, "--output_dir", "out",
                  "--checkpoint-every", 1, "--set", "train.precision=fp32")  # fmt: skip
    assert first.returncode == 0, first.stderr
    names = {"config.json", "best_model.pth", "best_model_weights.pth", "latest_checkpoint.pth", "tensorboard"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {
        "checkpoint_epoch_1.pth", "checkpoint_epoch_2.pth"
    }  # fmt: skip
    train = json.loads((tmp_path / "out/config.json").read_text())["identity"][0]
    assert (train["epochs"], train["augment"], train["lr"], train["latent_dim"]) == (2, "none", 1e-3, 128)
    checkpoint = torch.load(tmp_path / "out/best_model.pth", weights_only=True)
    assert checkpoint["model_config"]["latent_dim"] == 128
    assert checkpoint["preprocessing"]["height_range"] == [500, 1500]
    weights = torch.load(tmp_path / "out/best_model_weights.pth", weights_only=True)
    assert torch.equal(weights["network.encoder.head.bias"], checkpoint["state_dict"]["network.encoder.head.bias"])

    again = ["--set", "train.precision=fp32", "--resume", "out/latest_checkpoint.pth"]
    longer = stage("train_autoencoder", data, "b.safetensors", "--metrics-dir", "b", *flags, "--num-epochs", 3, *again)
    assert longer.returncode == 0, longer.stderr
    metrics = json.loads((tmp_path / "b/details.json").read_text())
    assert (metrics["epochs"], metrics["best_epoch"]) == (3, 2)
    for resume, more, message in (
        ("out/latest_checkpoint.pth", [], "has 2 epochs already"),
        ("out/best_model_weights.pth", [], "not a whole checkpoint"),
        ("out/latest_checkpoint.pth", ["--latent-dim", 192], "a checkpoint of another network"),
        ("depth.hdf5", [], "not a checkpoint that can be loaded safely"),
    ):
        options = [*flags, "--set", "train.precision=fp32", "--resume", resume, *more]
        assert message in only_error_line(stage("train_autoencoder", data, "c", "--metrics-dir", "c", *options))


def test_the_perceptual_loss_compares_features_and_ignores_holes(data, stage, tmp_path):
    torch.manual_seed(0)
    torch.save({f"features.{k}": v for k, v in vgg16().features[:16].state_dict().items()}, tmp_path / "vgg.pth")
    loss = PerceptualLoss(tmp_path / "vgg.pth")
    target = torch.rand(2, 1, 32, 32) * 2 - 1
    valid = torch.ones(2, 1, 32, 32, dtype=torch.bool)
    assert loss(target, target, valid) == 0
    near, far = (loss(target + scale * torch.randn_like(target), target, valid) for scale in (0.05, 0.5))
    assert 0 < near < far
    damaged = target.clone()
    damaged[..., :16] = -1
    valid[..., :16] = False
    assert loss(damaged, target, valid) == 0

    options = ["--use_perceptual_loss", "--set", "train.epochs=1"]
    line = only_error_line(stage("train_autoencoder", data, "a", "--metrics-dir", "m", *SETTINGS, *options))
    assert "train.perceptual_weight needs --perceptual-weights FILE" in line
    options += ["--perceptual-weights", "vgg.pth"]
    result = stage("train_autoencoder", data, "a", "--metrics-dir", "m", *SETTINGS, *options)
    assert result.returncode == 0, result.stderr
    assert not any("perceptual" in name for name in load_weights(tmp_path / "a", "autoencoder").tensors)
    options[-1] = "depth.hdf5"
    line = only_error_line(stage("train_autoencoder", data, "b", "--metrics-dir", "m", *SETTINGS, *options))
    assert "depth.hdf5: not a state dict of torchvision's VGG-16" in line


def test_the_range_of_parameters_is_checked():
    for wrong in ({"epochs": 0}, {"batch_size": 1}, {"lr": 0.0}, {"patience": 0}, {"precision": "fp8"}):
        with pytest.raises(ValidationError):
            TrainParams(**wrong)


def test_batches_hold_the_rows_asked_for(data):
    store = DepthStore.open(data)
    batch = DepthImages(store)[Draw(np.array([3, 1]), np.empty((2, 0), np.float32))]
    assert (batch["depth"][:, 0].numpy() == store.depth[[3, 1]]).all()
    assert (batch["valid"][:, 0].numpy() == store.valid[[3, 1]]).all()
    resident = DepthImages(store, resident=(torch.tensor(store.depth)[:, None], torch.tensor(store.valid)))
    other = resident[Draw(np.array([3, 1]), np.empty((2, 0), np.float32))]
    assert all(torch.equal(other[name], batch[name]) for name in batch)


def test_rotation_turns_image_and_mask_together(data):
    store = DepthStore.open(data)
    chances = np.zeros((4, CHANCES), np.float32)
    chances[:, 0] = (0.0, 0.3, 0.6, 0.9)
    batch = DepthImages(store, "rotate")[Draw(np.full(4, 3), chances)]
    for turns in range(4):
        assert (batch["depth"][turns, 0].numpy() == np.rot90(store.depth[3], turns)).all()
        assert (batch["valid"][turns, 0].numpy() == np.rot90(store.valid[3], turns)).all()


def test_full_augmentation_moves_image_and_mask_alike_and_makes_up_no_depth():
    generator = torch.Generator().manual_seed(0)
    levels = torch.tensor([-0.5, 0.0, 0.25])[torch.randint(3, (32, 2, 128, 128), generator=generator)]
    valid = levels[:, 0] == 0.25  # so that a mask which goes another way than its image is found out
    chances = torch.rand(32, CHANCES, generator=generator)
    images, masks = augment_images(levels, valid, chances, "full")
    assert images.shape == levels.shape
    for image, mask, (gain, offset) in zip(images, masks, chances[:, 6:], strict=True):
        expected = torch.tensor([-0.5, 0.0, 0.25]) * (0.9 + 0.2 * gain) + (0.2 * offset - 0.1)
        assert (image.flatten()[:, None] - expected).abs().amin(dim=1).max() < 1e-6
        assert torch.equal((image[0] - expected[2]).abs() < 1e-6, mask[0])
    cropped = chances[:, 3] < 0.5
    doubled = (
        (images[..., 1:] == images[..., :-1]).float().mean(dim=(1, 2, 3))
    )  # pixels repeat where a crop is enlarged
    assert doubled[cropped].mean() > doubled[~cropped].mean() + 0.05


def test_a_training_in_two_parts_lets_the_learning_rate_rise_once_more_but_less():
    configured = configure_optimizer([torch.nn.Parameter(torch.ones(1))], TrainParams(lr=1.0), steps=200, restart=0.5)
    factor = configured["lr_scheduler"]["scheduler"].lr_lambdas[0]
    once = configure_optimizer([torch.nn.Parameter(torch.ones(1))], TrainParams(lr=1.0), steps=100)
    expected = once["lr_scheduler"]["scheduler"].lr_lambdas[0]
    assert [factor(step) for step in range(100)] == [expected(step) for step in range(100)]
    assert [factor(step) for step in range(100, 200)] == pytest.approx([0.3 * expected(step) for step in range(100)])


@pytest.mark.parametrize("largest", [0.5, 5.0, 100.0, float("inf")])
def test_gradients_are_clipped_as_torch_does(largest):
    ours, theirs = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    ours.grad, theirs.grad = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([3.0, 4.0, 0.0])
    without = torch.nn.Parameter(torch.zeros(2))
    assert clip_gradients(iter([ours, without]), largest) == torch.nn.utils.clip_grad_norm_([theirs], largest) == 5
    torch.testing.assert_close(ours.grad, theirs.grad)
    ours.grad[0] = float("nan")
    assert clip_gradients([ours], largest).isnan()


def test_in_bfloat16_the_patch_path_keeps_its_precision():
    torch.manual_seed(0)
    network, images = Autoencoder(NetworkConfig(latent_dim=128, width=16)).eval(), torch.rand(2, 1, 128, 128) - 0.5
    plain = network(images)[0].detach()
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(images)[0]
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain, rtol=0, atol=1e-5)  # the network's ends are zero at first


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not GNU's")
def test_a_process_that_keeps_freed_memory_gets_it_back_without_new_pages():
    code = (
        "import resource\n"
        "from sightline.core.memory import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    b'x' * 2**27\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "first = faults(), faults()\n"
        "keep_freed_memory()\n"
        "print(*first, faults(), faults())\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    anew, again, kept, reused = map(int, done.stdout.split())
    assert min(anew, again, kept) > 4 * max(reused, 1)  # a page may have 2 MiB, and then there are 64
