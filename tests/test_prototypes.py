"""The contrastive memory bank: reference vectors, and its definition in loops."""

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prototype_loops import assert_bank, draw, logits_of, make, pairwise_loss, unit, update_rows
from torch.nn import functional as F

from sightline.segmentation import ContrastivePrototypeManager
from sightline.segmentation.contrastive import (
    class_members,
    inter_class_loss,
    intra_class_loss,
    mean_directions,
    weighted_and_plain_means,
)

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
VECTORS = sorted(GOLDEN.glob("*.npz"))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """The tests run beside each other; torch's threads would wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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
                own = dict(selectors["selector"][class_id].named_parameters())[name].grad
                torch.testing.assert_close(own, gradient, rtol=tolerance["rtol"], atol=1e-12)
    else:
        before = {int(k.split("/")[1]): torch.from_numpy(vectors[k]) for k in vectors if k.startswith("memory_before/")}
        manager.update_memory(before)
        manager.update_memory({class_id: features[labels == class_id] for class_id in labels.unique().tolist()})
        after = {int(k.split("/")[1]): torch.from_numpy(vectors[k]) for k in vectors if k.startswith("memory_after/")}
        for class_id in range(manager.num_classes):
            rows = manager.memory_rows(class_id)
            assert torch.equal(rows, after[class_id]) if class_id in after else rows is None
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
    loss, _ = manager.update_and_compute_loss(features, logits, given_labels, labelled == "yes")
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
    assert loss.shape == ()


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
            means, _ = weighted_and_plain_means(x, members, eps, w)
        means.backward(upstream)
        gradients.append((means.detach(), x.grad, w.grad))
    for expected, ours in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-13)
