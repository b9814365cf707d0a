"""The contrastive memory bank: reference vectors, its definition in loops, options, checkpoints, gradients."""

import copy
import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from sightline.errors import UserError
from sightline.segmentation import ContrastivePrototypeManager
from sightline.segmentation.contrastive import class_members, inter_class_loss, intra_class_loss, mean_directions
from sightline.segmentation.prototypes import PRESETS

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
VECTORS = sorted(GOLDEN.glob("*.npz"))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tests run beside each other; torch's threads would wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make(num_classes=3, feature_dim=5, elements_per_class=4, seed=0, **options):
    """A manager in float64 whose selectors are spread, so that every score counts."""
    torch.manual_seed(seed)
    manager = ContrastivePrototypeManager(num_classes, feature_dim, elements_per_class, **options).double()
    for selectors in manager.get_selectors():
        for selector in selectors or []:
            nn.init.normal_(selector[3].weight, std=2)
    return manager


def draw(count, dim=5, num_classes=3, seed=0):
    """Features, logits and labels, float64."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, dim, generator=generator, dtype=torch.float64)
    logits = torch.randn(count, num_classes, generator=generator, dtype=torch.float64)
    return features, logits, torch.randint(num_classes, (count,), generator=generator)


def logits_of(classes, num_classes=3, certainty=9.0):
    """Logits that predict these classes."""
    return F.one_hot(classes, num_classes).double() * certainty


def fill(manager, rows=4, seed=7):
    """Store ``rows`` random rows of every class."""
    for class_id in range(manager.num_classes):
        manager.update_memory({class_id: draw(rows, manager.feature_dim, seed=seed + class_id)[0]})
    return manager


# --- the definition, row by row and pair by pair


def unit(row, eps=1e-12):
    return row / max(float(row.norm()), eps)


def pairwise_loss(manager, features, labels):
    """SS-Net's loss, with the whole matrix of pairs, class after class. Runs the selectors, as the manager does."""
    feature_selectors, memory_selectors = manager.get_selectors()
    losses = []
    for class_id in range(manager.num_classes):
        rows, memory = features[labels == class_id], manager.memory_rows(class_id)
        if memory is None or len(rows) < 2 or len(memory) < 2:
            continue
        units = torch.stack([row / row.norm().clamp_min(manager.eps) for row in rows])
        stored = torch.stack([unit(row, manager.eps) for row in memory])
        u, v = torch.ones(len(rows), dtype=rows.dtype), torch.ones(len(memory), dtype=rows.dtype)
        if feature_selectors is not None:
            u = torch.sigmoid(feature_selectors[class_id](rows.detach()))[:, 0]
            u = len(rows) * u / u.sum()
            if manager.memory_weights == "live":
                v = torch.sigmoid(memory_selectors[class_id](stored))[:, 0]
                v = len(memory) * v / v.sum()
        pairs = [
            u[i] * v[j] * (1 - units[i] @ stored[j]) for i, j in itertools.product(range(len(rows)), range(len(memory)))
        ]
        losses.append(sum(pairs) / len(pairs))
    if not losses:
        return features.sum() * 0
    return sum(losses) / (manager.num_classes if manager.divisor == "num_classes" else len(losses))


def select_rows(manager, rows, class_id):
    """Which rows an update keeps, as a list. Runs the selector, as the manager does."""
    rows, most = list(rows.detach()), manager.elements_per_update
    if len(rows) <= most:
        return rows
    selectors, _ = manager.get_selectors()
    if selectors is None:
        return [rows[math.floor(k * len(rows) / most)] for k in range(most)]
    scores = torch.sigmoid(selectors[class_id](torch.stack(rows)))[:, 0].tolist()
    sign = -1 if manager.selection_order == "descending" else 1
    return [rows[i] for i in sorted(range(len(rows)), key=lambda i: (sign * scores[i], i))[:most]]


def update_rows(manager, bank, features_dict):
    """The bank, as a list of lists, after an update."""
    bank = [list(rows) for rows in bank]
    for class_id, rows in features_dict.items():
        if len(rows):
            new = select_rows(manager, rows, class_id)
            older = bank[class_id] if manager.update == "fifo" else []
            bank[class_id] = (new + older)[: manager.elements_per_class]
    return bank


def assert_bank(manager, bank):
    for class_id, rows in enumerate(bank):
        stored = manager.memory_rows(class_id)
        if rows:
            assert torch.equal(stored, torch.stack(rows))
            assert not manager.memory[class_id, len(rows) :].any()
        else:
            assert stored is None


# --- reference vectors


@pytest.mark.skipif(not VECTORS, reason="the reference vectors are not here")
@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_reference_vectors(path):
    vectors = np.load(path)
    memory = {int(key.split("/")[1]): torch.from_numpy(vectors[key]) for key in vectors if key.startswith("memory/")}
    features = torch.from_numpy(vectors["features"])
    elements = int(vectors["elements_per_class"]) if "elements_per_class" in vectors else 32
    manager = ContrastivePrototypeManager(
        int(vectors["num_classes"]),
        features.shape[1],
        max([elements, *map(len, memory.values())]),
        use_learned_selector=any(key.startswith("sel/") for key in vectors),
    ).to(features.dtype)
    selectors = dict(zip(("selector", "selector_memory"), manager.get_selectors(), strict=True))

    def state(prefix, kind, class_id):
        start = f"{prefix}/contrastive_class_{kind}" + ("" if kind.endswith("memory") else "_") + f"{class_id}."
        return {key.removeprefix(start): torch.from_numpy(vectors[key]) for key in vectors if key.startswith(start)}

    for kind, class_id in itertools.product(selectors, range(manager.num_classes)):
        if selectors[kind] is not None:
            selectors[kind][class_id].load_state_dict(state("sel", kind, class_id))
    manager.train(str(vectors["bn_mode"]) == "train")
    labels = torch.from_numpy(vectors["labels"])
    tolerance = {"rtol": 1e-10, "atol": 1e-15} if features.dtype == torch.float64 else {"rtol": 1e-5, "atol": 1e-7}

    if "loss" in vectors:
        manager.update_memory(memory)
        features.requires_grad_()
        loss = manager.contrastive_class_to_class_learned_memory(features, labels)
        loss.backward()
        torch.testing.assert_close(loss.item(), float(vectors["loss"]), **tolerance)
        torch.testing.assert_close(features.grad, torch.from_numpy(vectors["grad_features"]), **tolerance)
        for class_id in range(manager.num_classes):
            for name, gradient in state("grad_sel", "selector", class_id).items():
                if name == "0.bias" and manager.training:
                    continue  # the normalisation takes it away: what is left is rounding
                found = dict(selectors["selector"][class_id].named_parameters())[name].grad
                torch.testing.assert_close(found, gradient, rtol=tolerance["rtol"], atol=1e-12)
    else:
        before = {int(k.split("/")[1]): torch.from_numpy(vectors[k]) for k in vectors if k.startswith("memory_before/")}
        manager.update_memory(before)
        manager.update_memory({class_id: features[labels == class_id] for class_id in labels.unique().tolist()})
        after = {int(k.split("/")[1]): torch.from_numpy(vectors[k]) for k in vectors if k.startswith("memory_after/")}
        for class_id in range(manager.num_classes):
            found = manager.memory_rows(class_id)
            assert torch.equal(found, after[class_id]) if class_id in after else found is None
    for kind, class_id in itertools.product(selectors, range(manager.num_classes)):
        for name, statistic in state("sel_after", kind, class_id).items():
            torch.testing.assert_close(selectors[kind][class_id].state_dict()[name], statistic, **tolerance)


# --- against the definition


@given(
    counts=st.lists(st.integers(0, 6), min_size=3, max_size=3),
    stored=st.lists(st.integers(0, 4), min_size=3, max_size=3),
    ignored=st.integers(0, 2),
    zero_row=st.booleans(),
    use_learned_selector=st.booleans(),
    memory_weights=st.sampled_from(["ones", "live"]),
    divisor=st.sampled_from(["num_classes", "present"]),
    training=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=80, deadline=None)
def test_the_loss_is_that_of_all_pairs(counts, stored, ignored, zero_row, training, seed, **options):
    manager = make(seed=seed, eps=1e-3, **options).train(training)
    manager.update_memory({class_id: draw(count, seed=seed + class_id)[0] for class_id, count in enumerate(stored)})
    labels = torch.tensor([c for c, count in enumerate(counts) for _ in range(count)] + [255] * ignored).long()
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))]
    rows = draw(len(labels), seed=seed)[0]
    if zero_row and len(rows):
        rows[0] = 0
    reference = copy.deepcopy(manager)
    results = []
    for module, compute in (
        (manager, manager.contrastive_class_to_class_learned_memory),
        (reference, lambda *args: pairwise_loss(reference, *args)),
    ):
        features = rows.clone().requires_grad_()
        loss = compute(features, labels)
        loss.backward()
        results.append([loss.detach(), features.grad, *(p.grad for p in module.parameters())])
    for ours, expected in zip(*results, strict=True):
        expected = torch.zeros_like(ours) if expected is None and ours is not None else expected
        if ours is None:
            assert expected is None
        else:
            torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-11)


@given(
    updates=st.lists(st.dictionaries(st.integers(0, 2), st.integers(0, 9), max_size=3), min_size=1, max_size=4),
    elements=st.integers(1, 5),
    fewer=st.integers(0, 3),
    use_learned_selector=st.booleans(),
    selection_order=st.sampled_from(["ascending", "descending"]),
    update=st.sampled_from(["replace", "fifo"]),
    training=st.booleans(),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=80, deadline=None)
def test_the_bank_holds_what_loops_select(updates, elements, fewer, training, seed, **options):
    most = max(1, elements - fewer) if fewer else None
    manager = make(elements_per_class=elements, elements_per_update=most, seed=seed, **options).train(training)
    reference, bank = copy.deepcopy(manager), [[], [], []]
    for step, counts in enumerate(updates):
        rows = {class_id: draw(count, seed=seed + 10 * step + class_id)[0] for class_id, count in counts.items()}
        manager.update_memory(rows)
        bank = update_rows(reference, bank, rows)
        assert_bank(manager, bank)
    for ours, expected in zip(manager.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours, expected)


@given(
    count=st.integers(0, 30),
    agreement=st.floats(0, 1),
    store_background=st.booleans(),
    require_correct=st.booleans(),
    confidence_threshold=st.sampled_from([0.0, 0.5, 0.7]),
    memory_source=st.sampled_from(["labelled", "all"]),
    labelled=st.sampled_from(["yes", "no", "pseudo"]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=80, deadline=None)
def test_the_rows_that_qualify_are_stored(count, agreement, labelled, seed, **options):
    manager = make(seed=seed, elements_per_class=6, **options)
    features, logits, labels = draw(count, seed=seed)
    agree = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < agreement
    logits = 2 * logits + logits_of(labels, certainty=8.0) * agree[:, None]
    labels[: count // 5] = 255
    given_labels = None if labelled == "no" else labels
    found, _ = manager.update_and_compute_loss(features, logits, given_labels, labelled == "yes")
    expected = {0: [], 1: [], 2: []}
    for row, logit, label in zip(features, logits, labels.tolist(), strict=True):
        predicted = int(logit.argmax())
        class_id = predicted if labelled == "no" else label
        if class_id == 255 or (class_id == 0 and not options["store_background"]):
            continue
        if options["require_correct"] and predicted != class_id:
            continue
        if float(logit.softmax(0)[predicted]) > options["confidence_threshold"]:
            expected[class_id].append(row)
    writes = labelled == "yes" or options["memory_source"] == "all"
    rows = {class_id: torch.stack(rows) for class_id, rows in expected.items() if rows and writes}
    assert_bank(manager, update_rows(manager, [[], [], []], rows))
    assert found.shape == ()


@given(count=st.integers(0, 12), margin=st.sampled_from([0.5, 1.0, 1.9]), seed=st.integers(0, 2**16))
@settings(max_examples=60, deadline=None)
def test_intra_and_inter_losses_are_those_of_loops(count, margin, seed):
    features, _, labels = draw(count, seed=seed)
    means = mean_directions(features, class_members(labels, 3), 1e-12)
    present = class_members(labels, 3).any(dim=1)
    prototypes, spreads = [], []
    for class_id in sorted(set(labels.tolist())):
        units = [unit(row) for row in features[labels == class_id]]
        prototype = unit(sum(units) / len(units))
        prototypes.append(prototype)
        spreads.append(sum(float((row - prototype).square().sum()) for row in units) / len(units))
    overlaps = [max(0, margin - float((a - b).norm())) ** 2 for a, b in itertools.combinations(prototypes, 2)]
    assert float(intra_class_loss(means, present)) == pytest.approx(np.mean(spreads or [0]), abs=1e-12)
    assert float(inter_class_loss(means, present, margin, 1e-12)) == pytest.approx(np.mean(overlaps or [0]), abs=1e-12)


@pytest.mark.parametrize("eps", [1e-12, 1.5])
def test_gradients_of_means_are_those_of_autograd_on_scaled_rows(eps):
    """Also of rows shorter than eps, of zeros, and of the weights."""
    features, _, labels = draw(20)
    features[0] = 0
    weights = torch.rand(20, generator=torch.Generator().manual_seed(1), dtype=torch.float64) + 0.1
    members = class_members(labels, 3)
    upstream = draw(3, seed=4)[0]
    gradients = []
    for plain in (True, False):
        x, w = features.clone().requires_grad_(), weights.clone().requires_grad_()
        if plain:
            sums = (members * w) @ F.normalize(x, dim=1, eps=eps)
            means = sums / members.sum(dim=1, keepdim=True).clamp_min(1)
        else:
            means = mean_directions(x, members, eps, w)
        means.backward(upstream)
        gradients.append((means.detach(), x.grad, w.grad))
    for expected, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-13)


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
    assert manager.elements_per_class == 16
    assert manager.inter_margin == 1.5
    features, _, labels = draw(60)
    features = features.float().requires_grad_()
    loss, parts = manager.update_and_compute_loss(features, logits_of(labels), labels)
    more, _ = manager.update_and_compute_loss(features, logits_of(labels), None, is_labeled=False)
    (loss + more).backward()
    assert features.grad.abs().sum() > 0
    assert parts["contrastive_loss"] > 0


def test_presets_are_what_their_sources_do():
    ss_net, semiseg, document = (ContrastivePrototypeManager.from_preset(name, 3, 5) for name in PRESETS)
    plain = ContrastivePrototypeManager(3, 5, 32, True, heads=True)
    options = [name for name, value in vars(plain).items() if not name.startswith("_") and name != "training"]
    assert all(getattr(ss_net, name) == getattr(plain, name) for name in options)
    assert (semiseg.elements_per_class, semiseg.update, semiseg.elements_per_update) == (256, "fifo", 8)
    assert (semiseg.store_background, semiseg.confidence_threshold, semiseg.require_correct) == (True, 0.95, True)
    assert semiseg.selection_order == "ascending"
    assert document.get_selectors() == (None, None)
    assert document.projection is None
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
        ({"num_classes": 0}, "num_classes must be at least 1, not 0"),
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
        ({"input_dim": 7}, "input_dim 7 is of the heads"),
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
