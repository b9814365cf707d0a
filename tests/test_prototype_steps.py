"""Whole steps of the contrastive memory bank, its options and its gradients."""

import copy
import math

import pytest
import torch
from prototype_loops import draw, fill, logits_of, make, pairwise_loss

from sightline.segmentation import ContrastivePrototypeManager
from sightline.segmentation.presets import PRESETS, PrototypeOptions


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tests run beside each other; torch's threads would wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- one step


def test_a_step_is_ss_nets():
    """The bank first, from this step's correct foreground rows, then the loss of all rows; weights of the sum."""
    manager = make(use_learned_selector=True, elements_per_class=8)
    features, _, labels = draw(40)
    predicted = labels.clone()
    predicted[::4] = (labels[::4] + 1) % 3
    reference = copy.deepcopy(manager)
    total, parts = manager.update_and_compute_loss(
        features, logits_of(predicted), labels, contrastive_weight=0.3, intra_weight=0.2, inter_weight=0.4
    )
    reference.update_memory({c: features[(labels == c) & (predicted == c)] for c in (1, 2)})
    assert manager.memory_rows(0) is None
    assert torch.equal(manager.memory, reference.memory)
    expected = pairwise_loss(reference, features, labels)
    torch.testing.assert_close(parts["contrastive_loss"], expected.detach())
    assert list(parts) == ["contrastive_loss", "intra_loss", "inter_loss", "total_loss"]
    weighted = 0.3 * parts["contrastive_loss"] + 0.2 * parts["intra_loss"] + 0.4 * parts["inter_loss"]
    torch.testing.assert_close(parts["total_loss"], weighted)
    torch.testing.assert_close(total.detach(), weighted)
    assert all(part.shape == () and not part.requires_grad for part in parts.values())


def test_default_weights_are_1_and_a_tenth():
    manager = fill(make())
    features, logits, labels = draw(20)
    _, parts = manager.update_and_compute_loss(features, logits, labels)
    expected = parts["contrastive_loss"] + 0.1 * parts["intra_loss"] + 0.1 * parts["inter_loss"]
    torch.testing.assert_close(parts["total_loss"], expected)


def test_without_labels_the_predicted_classes_count_and_the_bank_stays():
    manager = fill(make())
    features, logits, _ = draw(20)
    before = manager.memory.clone()
    for is_labeled in (True, False):
        _, parts = manager.update_and_compute_loss(features, logits, None, is_labeled)
        _, pseudo = copy.deepcopy(manager).update_and_compute_loss(features, logits, logits.argmax(1), is_labeled=False)
        assert parts == pseudo
        expected = manager.contrastive_class_to_class_learned_memory(features, logits.argmax(1))
        assert torch.equal(parts["contrastive_loss"], expected)
        assert torch.equal(manager.memory, before)


@pytest.mark.parametrize("space", [(3,), (3, 4), (2, 3, 4)])
@pytest.mark.parametrize("heads", [False, True])
def test_dense_layouts_are_the_rows_in_order(space, heads):
    dense, flat = make(heads=heads, use_learned_selector=True), make(heads=heads, use_learned_selector=True)
    rows = 2 * math.prod(space)
    features, _, labels = draw(rows)
    logits = logits_of(labels)

    def lay_out(x):
        return x.reshape(2, *space, -1).movedim(-1, 1)

    loss, parts = dense.update_and_compute_loss(lay_out(features), lay_out(logits), labels.reshape(2, *space))
    expected, expected_parts = flat.update_and_compute_loss(features, logits, labels)
    assert torch.equal(loss, expected)
    assert parts == expected_parts
    assert torch.equal(dense.memory, flat.memory)
    again = dense.contrastive_class_to_class_learned_memory(lay_out(features), labels.reshape(2, *space))
    assert torch.equal(again, flat.contrastive_class_to_class_learned_memory(features, labels))


@pytest.mark.parametrize("case", ["empty bank", "no rows", "one row", "all ignored", "one stored row"])
@pytest.mark.parametrize("options", [{}, {"use_learned_selector": True, "heads": True}, {"divisor": "present"}])
def test_where_nothing_is_left_the_loss_is_a_tensor_of_zero_with_a_gradient_path(case, options):
    manager = make(**options)
    if case == "one stored row":
        fill(manager, rows=1)
    elif case != "empty bank":
        fill(manager)
    count = {"no rows": 0, "one row": 1}.get(case, 12)
    features, _, labels = draw(count)
    features.requires_grad_()
    if case == "all ignored":
        labels[:] = 255
    loss = manager.contrastive_class_to_class_learned_memory(features, labels)
    loss.backward()
    assert loss.item() == 0
    assert not features.grad.any()
    memory = manager.memory.clone()
    loss, _ = manager.update_and_compute_loss(features, -logits_of(labels % 3), labels)
    loss.backward()
    assert loss.isfinite()
    assert features.grad.isfinite().all()
    assert torch.equal(manager.memory, memory)  # no row is correct


def test_classes_that_are_absent_divide_the_loss_as_asked():
    features, _, labels = draw(30)
    labels[labels == 1] = 2
    by_all, by_present = fill(make()), fill(make(divisor="present"))
    loss = by_all.contrastive_class_to_class_learned_memory(features, labels)
    assert 3 / 2 * loss.item() == pytest.approx(
        by_present.contrastive_class_to_class_learned_memory(features, labels).item(), rel=1e-12
    )


# --- options


def test_selection_order_decides_which_scores_are_kept():
    lowest, highest = (make(use_learned_selector=True, selection_order=o) for o in ("ascending", "descending"))
    rows = draw(20)[0]
    scores = torch.sigmoid(copy.deepcopy(lowest).feature_selectors[1](rows))[:, 0].argsort()
    assert torch.equal(lowest.select_elements(rows, 1), rows[scores[:4]])
    assert torch.equal(highest.select_elements(rows, 1), rows[scores.flip(0)[:4]])


def test_without_selectors_the_rows_are_spread_over_all():
    rows = draw(21)[0]
    assert torch.equal(make().select_elements(rows, 1), rows[[0, 5, 10, 15]])


def test_a_queue_keeps_older_rows_behind_newer_ones():
    manager = make(update="fifo", elements_per_update=3)
    first, second = draw(3)[0], draw(9, seed=1)[0]
    manager.update_memory({1: first})
    manager.update_memory({1: second, 2: first[:1]})
    assert torch.equal(manager.memory_rows(1), torch.cat([second[[0, 3, 6]], first[:1]]))
    assert torch.equal(manager.memory_rows(2), first[:1])


def test_memory_weights_are_one_or_learned():
    """With weights of one the memory selectors get no gradient; their statistics move, as the reference's do."""
    features, _, labels = draw(30)
    for weights, learns in (("ones", False), ("live", True)):
        manager = fill(make(use_learned_selector=True, memory_weights=weights))
        manager.contrastive_class_to_class_learned_memory(features, labels).backward()
        feature_selectors, memory_selectors = manager.get_selectors()
        assert (memory_selectors[1][0].weight.grad is not None) == learns
        assert feature_selectors[1][0].weight.grad.abs().sum() > 0
        assert memory_selectors[1][1].num_batches_tracked == 1


def test_rows_with_infinite_numbers_are_not_stored():
    manager = make()
    features, _, labels = draw(6)
    labels[:] = 1
    features[0, 0], features[1, 0] = torch.inf, torch.nan
    manager.update_and_compute_loss(features, logits_of(labels), labels)
    assert torch.equal(manager.memory_rows(1), features[2:])


def test_heads_store_the_projection_and_compare_the_prediction():
    manager = make(heads=True, input_dim=7, elements_per_class=50)
    features, _, labels = draw(30, dim=7)
    reference = copy.deepcopy(manager)
    _, parts = manager.update_and_compute_loss(features, logits_of(labels), labels)
    with torch.no_grad():
        reference.eval()
        projected = reference.projection(features)
        reference.train()
        reference.update_memory({1: projected[labels == 1], 2: projected[labels == 2]})
        embedded = reference.prediction(reference.projection(features))
        expected = pairwise_loss(reference, embedded, labels)
    torch.testing.assert_close(manager.memory, reference.memory)
    torch.testing.assert_close(parts["contrastive_loss"], expected)
    assert manager.projection.training
    assert manager.projection[1].num_batches_tracked == 1


def test_memory_features_are_stored_where_the_network_has_the_heads():
    manager = make(elements_per_class=50)
    features, _, labels = draw(30)
    other = draw(30, seed=5)[0]
    _, parts = manager.update_and_compute_loss(features, logits_of(labels), labels, memory_features=other)
    assert torch.equal(manager.memory_rows(2), other[labels == 2])
    torch.testing.assert_close(parts["contrastive_loss"], pairwise_loss(manager, features, labels))


def test_eps_bounds_the_gradient_of_a_row_of_zeros():
    gradients = []
    for eps in (1e-12, 1e-3):
        manager = fill(make(eps=eps))
        features, _, labels = draw(20)
        features[3] = 0
        features.requires_grad_()
        manager.contrastive_class_to_class_learned_memory(features, labels).backward()
        gradients.append(features.grad[3].norm().item())
    assert gradients[0] > 1e8
    assert gradients[1] == pytest.approx(gradients[0] * 1e-9, rel=1e-6)


def test_ignored_rows_change_nothing():
    manager = fill(make(ignore_index=-1, use_learned_selector=True).eval())
    features, logits, labels = draw(20)
    more_features, more_logits, _ = draw(8, seed=3)
    more_labels = torch.cat([torch.full((8,), -1), labels])
    _, expected = copy.deepcopy(manager).update_and_compute_loss(features, logits, labels)
    _, parts = manager.update_and_compute_loss(
        torch.cat([more_features, features]), torch.cat([more_logits, logits]), more_labels
    )
    for name, part in parts.items():
        torch.testing.assert_close(part, expected[name])


@pytest.mark.parametrize("name", list(PRESETS))
def test_presets_train(name):
    manager = ContrastivePrototypeManager.from_preset(name, 3, 5, elements_per_class=16, inter_margin=1.5)
    assert manager.options.elements_per_class == 16
    assert manager.options.inter_margin == 1.5
    features, _, labels = draw(60)
    features = features.float().requires_grad_()
    loss, parts = manager.update_and_compute_loss(features, logits_of(labels), labels)
    more, _ = manager.update_and_compute_loss(features, logits_of(labels), None, is_labeled=False)
    (loss + more).backward()
    assert features.grad.abs().sum() > 0
    assert parts["contrastive_loss"] > 0


def test_presets_are_what_their_sources_do():
    managers = [ContrastivePrototypeManager.from_preset(name, 3, 5) for name in PRESETS]
    ss_net, semiseg, document = (manager.options for manager in managers)
    assert ss_net == PrototypeOptions(3, 5, 32, True, heads=True)
    assert (semiseg.elements_per_class, semiseg.update, semiseg.elements_per_update) == (256, "fifo", 8)
    assert (semiseg.store_background, semiseg.confidence_threshold, semiseg.require_correct) == (True, 0.95, True)
    assert semiseg.selection_order == "ascending"
    assert managers[2].get_selectors() == (None, None)
    assert not document.heads
    assert (document.selection_order, document.divisor, document.memory_source) == ("descending", "present", "all")


# --- gradients


def test_which_parts_have_gradients():
    manager = make(use_learned_selector=True, heads=True)
    features, _, labels = draw(40)
    features.requires_grad_()
    logits = logits_of(labels).requires_grad_()
    loss, _ = manager.update_and_compute_loss(features, logits, labels)
    loss.backward()
    assert features.grad.abs().sum() > 0
    assert logits.grad is None
    assert not manager.memory.requires_grad
    feature_selectors, _ = manager.get_selectors()
    assert [selector[0].weight.grad is not None for selector in feature_selectors] == [False, True, True]
    assert manager.prediction[0].weight.grad.abs().sum() > 0
    assert manager.projection[0].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("weights", [(0, 1, 0), (0, 0, 1)], ids=["intra", "inter"])
def test_intra_and_inter_losses_teach_the_features(weights):
    """Descending them brings rows of a class together and classes apart, and leaves no loss that is only logged."""
    manager = make()
    features, _, labels = draw(30)
    features = (features * 0.3 + 1).requires_grad_()
    optimizer = torch.optim.SGD([features], lr=1.0)
    losses = []
    for _ in range(60):
        loss, _ = manager.update_and_compute_loss(features, logits_of(labels), labels, True, *weights)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_collapsed_classes_and_cancelling_rows_have_finite_gradients():
    rows = torch.ones(4, 5, dtype=torch.float64)
    rows[2] = -1
    rows.requires_grad_()
    loss, _ = make().update_and_compute_loss(rows, logits_of(torch.tensor([0, 1, 1, 2])), torch.tensor([0, 1, 1, 2]))
    loss.backward()
    assert rows.grad.isfinite().all()


def test_two_calls_before_one_backward():
    """A later update of the bank does not disturb the gradient of an earlier loss."""
    features, _, labels = draw(30)
    other = draw(30, seed=5)[0]
    gradients = []
    for calls in ((features,), (features, other)):
        manager = make(use_learned_selector=True, memory_weights="live")
        leaf = features.clone().requires_grad_()
        losses = [
            manager.update_and_compute_loss(leaf if x is features else x, logits_of(labels), labels)[0] for x in calls
        ]
        sum(losses).backward()
        gradients.append(leaf.grad)
    assert torch.equal(*gradients)
