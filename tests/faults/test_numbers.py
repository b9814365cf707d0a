"""Numbers that are none stop a training, which names the frames; what was good before is kept."""

import sys

import lightning
import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset

from sightline.core.errors import UserError
from sightline.depth.network import Autoencoder, NetworkConfig
from sightline.depth.preprocessing import Preprocessing
from sightline.depth.training import AutoencoderModule, TrainParams
from sightline.training.by_hand import ByHand
from sightline.training.fitting import Batches, TrainerParams, _code_identity, fit
from sightline.training.order import Draw, EpochBatches, in_order

ROWS, FRAME_IDS = 12, np.arange(12) * 10 + 5


class Line(Dataset):
    """Points of y = 3 x, by row."""

    def __init__(self) -> None:
        self.x = torch.linspace(-1, 1, ROWS)[:, None]

    def __getitem__(self, draw: Draw) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        rows = torch.from_numpy(draw.rows)
        return self.x[rows], 3 * self.x[rows], rows


class Slope(lightning.LightningModule):
    """Learns the slope; ``spoil(loss, rows, epoch)`` is the loss that it sees."""

    def __init__(self, spoil, rising=None) -> None:
        super().__init__()
        self.line, self.spoil, self.rising = nn.Linear(1, 1), spoil, rising or (lambda epoch: 1.0)

    def training_step(self, batch, _):
        x, y, rows = batch
        loss = (self.line(x) - y).square().mean()
        self.log("train_loss", loss, on_step=False, on_epoch=True, batch_size=len(x))
        return self.spoil(loss, rows, self.current_epoch)

    def validation_step(self, batch, _):
        x, y, _ = batch
        loss = (self.line(x) - y).square().mean() * self.rising(self.current_epoch)
        self.log("val_loss", loss, on_step=False, on_epoch=True, batch_size=len(x))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def run(module: Slope, output_dir=None, **changes):
    torch.manual_seed(0)
    params = TrainerParams(epochs=4, batch_size=4, precision="fp32", gradient_clip=0.0, **changes)
    order = EpochBatches(np.arange(ROWS), 4, seed=0)
    batches = Batches(Line(), order, Line(), in_order(np.arange(ROWS), ROWS), FRAME_IDS)
    return fit(module, batches, params, "line", [], ByHand(output_dir))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_gradient_that_is_no_number_stops_before_the_step_and_names_the_frames(wrong, tmp_path, scratch_root):
    seen = []

    def spoil(loss, rows, epoch):
        if epoch == 2 and 7 in rows:
            seen.append(sorted(FRAME_IDS[rows].tolist()))
            return loss * wrong
        return loss

    module = Slope(spoil)
    with pytest.raises(UserError, match=r"the gradient is not finite in batch [0-2] of epoch 2") as error:
        run(module, tmp_path / "out")
    assert 75 in seen[0]
    assert f"of frames {', '.join(map(str, seen[0]))}: " in str(error.value)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
    for path in (tmp_path / "out/latest_checkpoint.pth", *(scratch_root / "line").glob("*/last.ckpt")):
        kept = torch.load(path, weights_only=True)
        assert kept["epoch"] == 1
        assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())


def test_the_batches_of_an_accumulated_step_are_all_named(scratch_root):
    module = Slope(lambda loss, rows, epoch: loss * (float("nan") if 7 in rows else 1))
    with pytest.raises(UserError) as error:
        run(module, accumulate=3)
    assert all(str(i) in str(error.value) for i in FRAME_IDS)


def test_a_loss_that_diverges_stops_and_keeps_the_last_good_epoch(tmp_path):
    module = Slope(lambda loss, rows, epoch: loss, rising=lambda epoch: 1e6 if epoch == 2 else 1.0)
    with pytest.raises(UserError, match=r"the training diverges: the validation loss is .* in epoch 2, it was"):
        run(module, tmp_path / "out")
    assert torch.load(tmp_path / "out/latest_checkpoint.pth", weights_only=True)["epoch"] == 1


def test_the_norm_of_the_gradient_is_in_the_curves(tmp_path):
    norms: dict[int, list[float]] = {}
    module = Slope(lambda loss, rows, epoch: loss)

    def on_before_optimizer_step(optimizer) -> None:
        grads = torch.cat([p.grad.flatten() for p in module.parameters()])
        norms.setdefault(module.current_epoch, []).append(float(grads.norm()))

    module.on_before_optimizer_step = on_before_optimizer_step
    result = run(module)
    expected = [np.mean(norms[epoch]) for epoch in range(4)]
    assert [row["gradient_norm"] for row in result.history] == pytest.approx(expected)
    result.report(tmp_path, {}, {})
    assert "gradient_norm" in (tmp_path / "curves.csv").read_text().splitlines()[0]


def test_the_identity_of_the_code_is_that_of_the_files_and_not_of_what_is_imported(monkeypatch):
    module = AutoencoderModule(
        Autoencoder(NetworkConfig(latent_dim=128, width=16)), TrainParams(), Preprocessing(), None
    )
    identity = _code_identity(module)
    monkeypatch.delitem(sys.modules, "sightline.training.order")
    assert _code_identity(module) == identity
    assert _code_identity(Slope(None)) != identity  # of another folder


def test_a_batch_without_a_valid_pixel_teaches_nothing_and_poisons_no_statistics():
    torch.manual_seed(0)
    network = Autoencoder(NetworkConfig(latent_dim=128, width=16))
    module = AutoencoderModule(network, TrainParams(latent_dim=128, width=16), Preprocessing(), None).train()
    module.log_dict = lambda *_, **__: None  # there is no trainer to log to
    depth = torch.rand(2, 1, 128, 128) * 2 - 1
    with torch.no_grad():
        for _ in range(3):
            network(depth)
        before = network.eval()(depth)[0]
    network.train()
    loss = module.training_step({"depth": torch.zeros(2, 1, 128, 128), "valid": torch.zeros(2, 1, 128, 128) > 0}, 0)
    loss.backward()
    assert float(loss.detach()) == 0
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())
    assert all(buffer.isfinite().all() for buffer in network.buffers())
    with torch.no_grad():
        after = network.eval()(depth)[0]
    assert after.isfinite().all()
    assert (after - before).abs().max() < 0.1
