"""The memory bank in every precision, against a computation of its own over all pairs, and rows that are not finite."""

import copy
import itertools

import pytest
import torch
from prototype_loops import draw, fill, logits_of, make
from torch.nn import functional as F

from sightline.core.errors import UserError
from sightline.segmentation import ContrastivePrototypeManager

pytestmark = pytest.mark.usefixtures("one_thread")

TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
CLASSES, DIM, ELEMENTS = 5, 256, 6


def batch(dtype, ignored, space):
    """Features whose sums overflow in float16, logits and labels [2, *space]; no row of class 3, one of class 4."""
    generator = torch.Generator().manual_seed(0)
    shape = (2, *space)
    features = (500 + 500 * torch.rand(2, DIM, *space, generator=generator)).to(dtype)
    labels = torch.randint(3, shape, generator=generator)
    labels.view(-1)[0], labels.view(-1)[-5:] = 4, ignored
    predicted = torch.where(torch.rand(shape, generator=generator) < 0.8, labels.clamp(0, 4), 0)
    logits = 8 * F.one_hot(predicted, CLASSES).movedim(-1, 1).to(dtype)
    return features, logits, labels


def stored_rows(rows, predicted, labels):
    """What the bank must hold: of each class but 0, the finite rows that are predicted as labelled, evenly spaced."""
    bank = {}
    for class_id in range(1, CLASSES):
        fit = [
            row
            for row, guess, label in zip(rows, predicted, labels, strict=True)
            if label == class_id == guess and all(map(torch.isfinite, row))
        ]
        count = min(len(fit), ELEMENTS)
        if fit:
            bank[class_id] = torch.stack([fit[i * len(fit) // count] for i in range(count)])
    return bank


def losses_over_all_pairs(rows, labels, bank):
    """The three losses in float64, one pair after another: O(M K) products."""
    contrastive, prototypes, spreads = [], [], []
    for class_id in range(CLASSES):
        own = [row / row.norm() for row, label in zip(rows, labels, strict=True) if label == class_id]
        if class_id in bank and len(own) > 1 and len(bank[class_id]) > 1:
            pairs = [1 - row @ (m / m.norm()) for row, m in itertools.product(own, bank[class_id].double())]
            contrastive.append(sum(pairs) / len(pairs))
        if own:
            mean = sum(own) / len(own)
            prototypes.append(mean / mean.norm())
            spreads.append(sum((row - prototypes[-1]).square().sum() for row in own) / len(own))
    overlaps = [(1 - (a - b).norm()).clamp_min(0) ** 2 for a, b in itertools.combinations(prototypes, 2)]
    parts = {
        "contrastive_loss": sum(contrastive) / CLASSES,
        "intra_loss": sum(spreads) / len(spreads),
        "inter_loss": sum(overlaps) / len(overlaps),
    }
    return parts["contrastive_loss"] + 0.1 * parts["intra_loss"] + 0.1 * parts["inter_loss"], parts


@pytest.mark.parametrize("space", [(40,), (3, 4, 4)], ids=["1d", "3d"])
@pytest.mark.parametrize("ignored", [255, -1])
@pytest.mark.parametrize("autocast", [False, True], ids=["plain", "autocast"])
@pytest.mark.parametrize("dtype", TYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def test_bank_losses_and_gradients_are_those_of_all_pairs(dtype, autocast, ignored, space):
    features, logits, labels = batch(dtype, ignored, space)
    flat = features.movedim(1, -1).reshape(-1, DIM)
    flat[7], flat[9, 3] = torch.nan, torch.inf
    features = flat.view(2, *space, DIM).movedim(-1, 1).clone().requires_grad_()
    manager = ContrastivePrototypeManager(CLASSES, DIM, ELEMENTS, ignore_index=ignored)
    manager.to(torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, parts = manager.update_and_compute_loss(features, logits, labels)
    (1024 * loss).backward()  # as for float16, whose smallest number is near these gradients

    labels_N, predicted_N = labels.view(-1).tolist(), logits.argmax(1).view(-1).tolist()
    bank = stored_rows(flat, predicted_N, labels_N)
    assert set(bank) == {1, 2, 4}
    assert len(bank[4]) == 1  # a class with one stored row has no loss
    for class_id in range(CLASSES):
        rows = manager.memory_rows(class_id)
        assert torch.equal(rows, bank[class_id].to(rows)) if class_id in bank else rows is None
    finite = flat.isfinite().all(1)
    rows = flat.double().requires_grad_()
    seen = [label if ok else ignored for label, ok in zip(labels_N, finite.tolist(), strict=True)]
    expected, expected_parts = losses_over_all_pairs(rows, seen, bank)
    expected.backward()
    close = {"rtol": 1e-10, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-6}
    torch.testing.assert_close(loss.double(), expected, **close)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for name, value in expected_parts.items():
        torch.testing.assert_close(parts[name].double(), value, **close)
    gradient = features.grad.movedim(1, -1).reshape(-1, DIM).double() / 1024
    assert not gradient[~finite].any()
    scale = rows.grad[finite].abs().max()
    step = 2e-3 if dtype in (torch.float16, torch.bfloat16) else 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(gradient[finite] / scale, rows.grad[finite] / scale, rtol=1e-2, atol=step)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_weights", ["ones", "live"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_selectors_weigh_long_rows_as_in_float64(dtype, memory_weights, training):
    """Whose scores are all 0 in float32, and whose sum was a divisor."""
    torch.manual_seed(0)
    manager = ContrastivePrototypeManager(3, 64, 8, True, memory_weights=memory_weights).train(training)
    for selectors in manager.get_selectors():
        for selector in selectors:
            torch.nn.init.normal_(selector[3].weight, -1, 0.5)
    reference = copy.deepcopy(manager).double()
    features = (500 + 500 * torch.rand(40, 64)).to(dtype).requires_grad_()
    labels = torch.arange(40) % 3
    loss, _ = manager.update_and_compute_loss(features, logits_of(labels), labels)
    expected, _ = reference.update_and_compute_loss(features.detach().double(), logits_of(labels), labels)
    assert loss > 0
    assert loss.item() == pytest.approx(expected.item(), rel=2e-3)
    loss.backward()
    gradients = [features.grad, *(p.grad for p in manager.parameters() if p.grad is not None)]
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("options", [{}, {"use_learned_selector": True, "heads": True, "memory_weights": "live"}])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_that_is_not_finite_changes_nothing(options, bad):
    """Neither the bank nor a loss, a gradient or a statistic."""
    manager = fill(make(**options), rows=3)
    other = copy.deepcopy(manager)
    features, _, labels = draw(30)
    more = torch.cat([features, draw(2, seed=5)[0]])
    more[30, 2], more[31] = bad, bad
    more_labels = torch.cat([labels, torch.tensor([1, 2])])
    results = []
    for bank, x, y in ((manager, features, labels), (other, more, more_labels)):
        x = x.clone().requires_grad_()
        loss, _ = bank.update_and_compute_loss(x, logits_of(y), y)
        plain = bank.contrastive_class_to_class_learned_memory(x, y)
        (loss + plain).backward()
        results.append((loss.detach(), plain.detach(), x.grad[:30], *(p.grad for p in bank.parameters())))
    assert not x.grad[30:].any()
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)
    for expected, ours in zip(manager.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-14)


def test_where_no_row_is_finite_the_loss_is_0_with_a_gradient_path():
    manager = fill(make())
    before = manager.memory.clone()
    features = torch.full((6, 5), torch.nan, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    loss, _ = manager.update_and_compute_loss(features, logits_of(labels), labels)
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()
    assert torch.equal(manager.memory, before)


def test_rows_are_judged_in_the_precision_of_the_bank():
    """1e5 is infinite in a bank of float16; a stored infinity would make every later loss NaN."""
    manager = ContrastivePrototypeManager(3, 4, 8).half()
    rows = torch.rand(5, 4)
    rows[1], rows[3, 0] = 1e5, torch.nan
    manager.update_memory({1: rows, 2: rows[1:2]})
    assert torch.equal(manager.memory_rows(1), rows[[0, 2, 4]].half())
    assert manager.memory_rows(2) is None
    assert torch.equal(manager.select_elements(rows, 1), rows[[0, 2, 4]])
    assert manager.contrastive_class_to_class_learned_memory(rows[[0, 2]], torch.tensor([1, 1])).isfinite()


def test_large_finite_rows_of_float32_are_stored_though_their_sum_overflows():
    manager = ContrastivePrototypeManager(2, 4, 8)
    rows = torch.full((3, 4), 3e38)
    manager.update_and_compute_loss(rows, logits_of(torch.ones(3).long(), 2), torch.ones(3).long())
    assert torch.equal(manager.memory_rows(1), rows)


def test_a_row_whose_prediction_is_nan_has_no_predicted_class():
    manager = make(memory_source="all", elements_per_class=20)
    features, _, labels = draw(12)
    logits = logits_of(labels)
    logits[3] = torch.nan
    logits[4] = torch.tensor([0.0, torch.nan, 0.0])
    loss, _ = manager.update_and_compute_loss(features, logits, None)
    own = torch.cat([labels[:3], torch.tensor([255, 255]), labels[5:]])
    assert torch.equal(manager.memory_rows(1), features[own == 1])
    expected, _ = make(elements_per_class=20).update_and_compute_loss(features, logits_of(labels), own)
    torch.testing.assert_close(loss, expected)


# --- one channel


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("space", [(), (6,), (3, 2, 4)])
def test_one_channel_is_the_probability_of_class_1(dtype, space):
    generator = torch.Generator().manual_seed(0)
    shape = (60, *space)
    features = torch.randn(60, 5, *space, generator=generator).to(dtype)
    probability = torch.rand(60, 1, *space, generator=generator).to(dtype)
    labels = torch.randint(2, shape, generator=generator)
    two = torch.cat([1 - probability.double(), probability.double()], dim=1).log()
    options = {"confidence_threshold": 0.7, "memory_source": "all", "store_background": True}
    for some in (labels, None):
        one, other = (ContrastivePrototypeManager(2, 5, 400, **options) for _ in range(2))
        loss, _ = one.update_and_compute_loss(features, probability, some)
        expected, _ = other.update_and_compute_loss(features, two, some)
        assert other.memory_count.all()
        assert torch.equal(one.memory, other.memory)
        assert torch.equal(loss, expected)


@pytest.mark.parametrize("value", [-0.5, 1.25, torch.inf])
def test_logits_of_one_channel_are_refused_before_the_bank_changes(value):
    manager = make(2)
    features, _, labels = draw(6, num_classes=2)
    logits = torch.full((6, 1), 0.5)
    logits[2] = value
    with pytest.raises(UserError, match=r"probabilities of class 1.*; apply torch\.sigmoid") as error:
        manager.update_and_compute_loss(features, logits, labels)
    assert "\n" not in str(error.value)
    assert not manager.memory_count.any()


def test_probabilities_are_refused_where_their_confidence_is_asked_for():
    """Of their softmax, none is above the threshold."""
    features, logits, labels = draw(12)
    with pytest.raises(UserError, match=r"must be logits to compare with confidence_threshold.*softmax out"):
        make(confidence_threshold=0.9).update_and_compute_loss(features, logits.softmax(1), labels)
    plain, other = make(), make()
    plain.update_and_compute_loss(features, logits, labels)
    other.update_and_compute_loss(features, logits.softmax(1), labels)  # the largest is the same
    assert torch.equal(plain.memory, other.memory)
