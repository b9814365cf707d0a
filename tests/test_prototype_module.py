"""The contrastive memory bank as a module: precision, devices, checkpoints, and arguments that it refuses."""

import copy
import subprocess
import sys

import pytest
import torch
from prototype_loops import draw, fill, logits_of, make
from torch import nn

from sightline.core.errors import UserError
from sightline.segmentation import ContrastivePrototypeManager


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tests run beside each other; torch's threads would wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- precision, devices, checkpoints


@pytest.mark.parametrize("options", [{}, {"use_learned_selector": True, "heads": True, "memory_weights": "live"}])
def test_half_precision_features_are_computed_in_float32(options):
    """As from a network under autocast, also while it is on."""
    features, _, labels = draw(60)
    features, logits = features.bfloat16(), logits_of(labels).bfloat16()
    manager = make(**options).float()
    expected, _ = copy.deepcopy(manager).update_and_compute_loss(features.float(), logits.float(), labels)
    half = features.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = manager.update_and_compute_loss(half, logits, labels)
        selected = manager.select_elements(features, 1)
    assert loss.dtype == torch.float32
    assert manager.memory.dtype == torch.float32
    assert selected.dtype == torch.bfloat16
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert half.grad.isfinite().all()


def test_float64_features_are_computed_in_float64_whatever_the_bank_is():
    features, _, labels = draw(30)
    manager = fill(make().float())
    assert manager.contrastive_class_to_class_learned_memory(features, labels).dtype == torch.float64
    assert manager.contrastive_class_to_class_learned_memory(features.float(), labels).dtype == torch.float32


def test_a_checkpoint_holds_the_bank_also_where_it_is_partly_filled(tmp_path):
    manager = make(use_learned_selector=True, heads=True)
    manager.update_memory({0: draw(3)[0], 2: draw(20)[0]})
    torch.save(manager.state_dict(), tmp_path / "checkpoint.pt")
    fresh = make(seed=1, use_learned_selector=True, heads=True)
    fresh.load_state_dict(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert fresh.memory_rows(1) is None
    assert torch.equal(fresh.memory_rows(0), manager.memory_rows(0))
    features, logits, labels = draw(30)
    for seed in range(3):
        features, logits, labels = draw(30, seed=seed)
        assert torch.equal(*(m.update_and_compute_loss(features, logits, labels)[0] for m in (manager, fresh)))
    assert torch.equal(manager.memory, fresh.memory)


def test_everything_moves_with_the_module():
    manager = ContrastivePrototypeManager.from_preset("ss_net", 3, 5).to("meta")
    assert {part.device.type for part in (*manager.parameters(), *manager.buffers())} == {"meta"}
    assert {part.dtype for part in make().half().buffers()} == {torch.float16, torch.int64}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_number_of_host_synchronisations_does_not_grow_with_the_classes():
    counts = []
    for num_classes in (3, 12):
        manager = make(num_classes, use_learned_selector=True).float().cuda()
        features, _, labels = draw(400, num_classes=num_classes)
        features, logits, labels = features.float().cuda(), logits_of(labels, num_classes).cuda(), labels.cuda()
        manager.update_and_compute_loss(features, logits, labels)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with pytest.warns(UserWarning, match="synchronizing") as caught:
                manager.update_and_compute_loss(features, logits, labels)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        counts.append(len(caught))
    assert counts[0] == counts[1]


def test_memory_rows_is_a_copy():
    manager = fill(make())
    rows = manager.memory_rows(1)
    before = rows.clone()
    manager.update_memory({1: draw(4, seed=99)[0]})
    assert torch.equal(rows, before)


def test_selectors_are_made_with_the_module_and_ready_for_an_optimizer():
    manager = ContrastivePrototypeManager(3, 5, use_learned_selector=True)
    for selectors in manager.get_selectors():
        assert [type(layer) for layer in selectors[2]] == [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU, nn.Linear]
        assert selectors[2][2].negative_slope == 0.2
        assert selectors[2](torch.rand(4, 5)).shape == (4, 1)
    parameters = {id(p) for selectors in manager.get_selectors() for p in selectors.parameters()}
    assert parameters == {id(p) for p in manager.parameters()}
    assert ContrastivePrototypeManager(3, 5).get_selectors() == (None, None)


# --- wrong arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "num_classes must be at least 2, not 0"),
        ({"num_classes": 1}, "num_classes must be at least 2, not 1: .* a network with one sigmoid channel has 2"),
        ({"feature_dim": -1}, "feature_dim must be at least 1, not -1"),
        ({"elements_per_class": 0}, "elements_per_class must be at least 1, not 0"),
        ({"elements_per_update": 9}, "elements_per_update must be at most elements_per_class 4, not 9"),
        ({"elements_per_update": 0}, "elements_per_update must be at least 1, not 0"),
        ({"selection_order": "lowest"}, "selection_order must be one of ascending, descending, not 'lowest'"),
        ({"divisor": "valid"}, "divisor must be one of num_classes, present, not 'valid'"),
        ({"memory_weights": "none"}, "memory_weights must be one of ones, live, not 'none'"),
        ({"update": "queue"}, "update must be one of replace, fifo, not 'queue'"),
        ({"memory_source": "labeled"}, "memory_source must be one of labelled, all, not 'labeled'"),
        ({"confidence_threshold": 1.0}, r"confidence_threshold must be at least 0 and below 1, not 1\.0"),
        ({"input_dim": 7}, "input_dim 7 needs the heads"),
        ({"input_dim": 0, "heads": True}, "input_dim must be at least 1, not 0"),
        ({"inter_margin": 0}, "inter_margin must be above 0, not 0"),
        ({"ignore_index": 2}, "ignore_index must not be one of the 3 classes, not 2"),
        ({"eps": 0}, "eps must be above 0, not 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message) as error:
        ContrastivePrototypeManager(**({"num_classes": 3, "feature_dim": 5, "elements_per_class": 4} | options))
    assert isinstance(error.value, UserError)  # a stage prints it as its one line
    assert "\n" not in str(error.value)


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="name must be one of ss_net, semiseg, document, not 'ssnet'"):
        ContrastivePrototypeManager.from_preset("ssnet", 3, 5)


ROWS, LOGITS, LABELS = draw(8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((ROWS[:, :4], LOGITS, LABELS), r"features must be \[N, 5\] or \[B, 5, \.\.\.\], not \[8, 4\]"),
        ((ROWS[0], LOGITS, LABELS), r"features must be .*, not \[5\]"),
        ((ROWS.long(), LOGITS, LABELS), r"features must be a floating point tensor, not torch\.int64"),
        ((ROWS.numpy(), LOGITS, LABELS), "features must be a floating point tensor, not ndarray"),
        ((ROWS, LOGITS[:, :1], LABELS), r"predictions must be \[N, 3\] .*, not \[8, 1\]"),
        ((ROWS, LOGITS[:, :2], LABELS), r"predictions must be \[N, 3\] .*, not \[8, 2\]"),
        ((ROWS, LOGITS[:7], LABELS), r"predictions must be of the features' rows \[8\], not of \[7\]"),
        ((ROWS, LOGITS, LABELS[:7]), r"labels must be of the features' rows \[8\], not of \[7\]"),
        ((ROWS, LOGITS, LABELS[:, None]), r"labels must be of the features' rows \[8\], not of \[8, 1\]"),
        ((ROWS, LOGITS, LABELS.double()), r"labels must be a tensor of whole numbers, not torch\.float64"),
        ((ROWS, LOGITS, LABELS + 1), "labels must be 0..2 or ignore_index 255, not 3"),
        ((ROWS, LOGITS, LABELS - 3), "labels must be 0..2 or ignore_index 255, not -"),
    ],
)
def test_wrong_tensors_are_refused_before_the_bank_changes(arguments, message):
    manager = make()
    with pytest.raises(ValueError, match=message) as error:
        manager.update_and_compute_loss(*arguments)
    assert "\n" not in str(error.value)
    assert not manager.memory_count.any()


def test_wrong_rows_and_classes_are_refused():
    manager = make()
    with pytest.raises(ValueError, match=r"class_labels must be 0\.\.2 or ignore_index 255, not 3"):
        manager.contrastive_class_to_class_learned_memory(ROWS, LABELS + 1)
    with pytest.raises(ValueError, match=r"features_dict\[1\] must be \[N, 5\], not \[8, 3\]"):
        manager.update_memory({2: ROWS, 1: ROWS[:, :3]})
    with pytest.raises(ValueError, match=r"class in features_dict must be 0\.\.2, not 3"):
        manager.update_memory({2: ROWS, 3: ROWS})
    assert not manager.memory_count.any()  # all or none
    with pytest.raises(ValueError, match=r"class_id must be 0\.\.2, not -1"):
        manager.memory_rows(-1)
    with pytest.raises(ValueError, match=r"class_id must be 0\.\.2, not 7"):
        manager.select_elements(ROWS, 7)
    with pytest.raises(ValueError, match=r"features must be \[N, 5\], not \[8, 1, 5\]"):
        manager.select_elements(ROWS[:, None], 1)
    with pytest.raises(ValueError, match=r"memory_features must be of the features' rows \[8\], not of \[7\]"):
        manager.update_and_compute_loss(ROWS, LOGITS, LABELS, memory_features=ROWS[:7])
    with pytest.raises(ValueError, match="memory_features must be None with heads"):
        make(heads=True).update_and_compute_loss(ROWS, LOGITS, LABELS, memory_features=ROWS)


def test_the_name_is_public_and_loads_no_torch_before_it_is_used():
    code = (
        "import sys; import sightline.segmentation as s; assert 'torch' not in sys.modules\n"
        "assert 'ContrastivePrototypeManager' in dir(s) and not hasattr(s, 'nothing')\n"
        "from sightline.segmentation import *; ContrastivePrototypeManager"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
