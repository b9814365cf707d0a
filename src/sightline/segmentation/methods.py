"""What a step learns, by method. All see the same labelled images; they differ in how they use the unlabelled ones.

    supervised  the labelled images alone
    ss_net      Wu et al., "Exploring Smoothness and Class-Separation for Semi-supervised Medical Image Segmentation"
                (SS-Net, MICCAI 2022): virtual adversarial smoothness of all images
    semiseg     Alonso et al., "Semi-Supervised Semantic Segmentation with Pixel-Level Contrastive Learning from a
                Class-wise Memory Bank" (ICCV 2021): pseudo-labels of a teacher, an average of the model, weighed by
                their confidence, for strongly changed images mixed by class
    unimatch    Yang et al., "Revisiting Weak-to-Strong Consistency" (UniMatch, CVPR 2023): confident predictions for a
                weak view are labels for two strong views with pasted rectangles, and for features that drop out; the
                predictions are the model's own or, as in UniMatch V2 (TPAMI 2025), those of its average
    bcp         Bai et al., "Bidirectional Copy-Paste" (CVPR 2023): labelled rectangles in unlabelled images and the
                reverse, with labels mixed alike, those of unlabelled images from a teacher. Its choice of the largest
                connected part of each class is an option: it holds for an organ, not for several objects of a class

The two with a memory bank of class features have it in `sightline.segmentation.training`, where any method may.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from sightline.core.params import Section
from sightline.recording.layout import IGNORE
from sightline.segmentation.augmentation import (
    STRONG_CHANCES,
    AugmentationParams,
    Inputs,
    Window,
    box_chances,
    extras_of,
    pasted,
    random_boxes,
    square_boxes,
    strong_view,
)
from sightline.segmentation.losses import dice_cross_entropy, virtual_adversarial_loss
from sightline.segmentation.model import SegmentationModel
from sightline.segmentation.network import Output

Method = Literal["supervised", "ss_net", "semiseg", "unimatch", "bcp"]
TEACHER_METHODS = ("semiseg", "bcp")
_ROUNDS = 8  # of spreading numbers over connected pixels, between two looks


def unlabelled_chances(axes: int) -> int:
    """How many random numbers of each unlabelled image with so many spatial axes methods take: of two strong views."""
    return 2 * (STRONG_CHANCES + box_chances(axes))


class SsNetParams(Section):
    """Smoothness in the direction that changes the prediction most, and a memory bank."""

    weight: float = Field(0.1, ge=0, description="weight of the smoothness, after the rise")
    xi: float = Field(10.0, gt=0, description="length of the change used to find the direction")
    eps: float = Field(6.0, gt=0, description="length of the change that is measured")


class SemisegParams(Section):
    """Pseudo-labels of a teacher, the average, for images mixed by class, and a memory bank."""

    weight: float = Field(1.0, ge=0, description="weight of the pseudo-labels, after the rise")
    sharpness: float = Field(6.0, ge=0, description="power of the confidence that weighs a pseudo-label")
    entropy_weight: float = Field(0.01, ge=0, description="weight of the entropy of the predictions")


class UnimatchParams(Section):
    """Confident predictions of a weak view are labels for strong views."""

    weight: float = Field(1.0, ge=0, description="weight of the unlabelled images beside the labelled ones")
    threshold: float = Field(0.95, ge=0, lt=1, description="least probability of a pseudo-label that counts")
    dropout: float = Field(0.5, gt=0, lt=1, description="share of the channels that drop out")
    teacher: bool = Field(True, description="labels from the average, as UniMatch V2; false: from the model itself")


class BcpParams(Section):
    """Labelled rectangles in unlabelled images and the reverse, labels of a teacher."""

    weight: float = Field(0.5, ge=0, description="weight of unlabelled pixels beside labelled ones")
    pretrain: float = Field(0.3, ge=0, lt=1, description="share of the first steps, on labelled images alone")
    largest_part: bool = Field(False, description="label only each class's largest part: true for organs, one of each")


class MethodParams(AugmentationParams):
    """Of the section ``segmentation``: the method, and what each has of its own."""

    method: Method = Field("bcp", description="supervised, ss_net, semiseg, unimatch or bcp")
    ramp: float = Field(
        0.4, gt=0, le=1, description="share of the steps over which the weights of unlabelled images and bank rise"
    )
    ss_net: SsNetParams = SsNetParams()
    semiseg: SemisegParams = SemisegParams()
    unimatch: UnimatchParams = UnimatchParams()
    bcp: BcpParams = BcpParams()

    def rise(self, done: float) -> float:
        """Factor of a weight when this share of the steps is done: exp(-5 (1 - t)^2) up to 1 (Laine and Aila, 2017).

        UniMatch as published has none, and far longer trainings; copy-paste begins with labelled images alone.
        """
        return math.exp(-5 * (1 - min(done / self.ramp, 1)) ** 2)


@dataclass
class Step:
    """What every method gets: changed labelled images, and how far the training is."""

    model: SegmentationModel
    teacher: SegmentationModel  # the average of the model, in evaluation mode; the model itself where there is none
    params: MethodParams
    done: float  # share of the steps
    generator: torch.Generator  # of this step alone, on the device of the images
    class_weights: Tensor | None  # of the classes in the cross-entropy
    labelled: Inputs
    labels: Tensor  # class ids, int64 [B, H, W] or [B, H, W, Z], 255 = ignore
    hidden: dict[str, Tensor]  # which labelled images' further inputs are hidden


@dataclass
class Unlabelled:
    """Weakly changed images without labels.

    If the training uses parts of images, a teacher still sees the whole ones, and its labels are cut to the same parts:
    a network predicts a part better when it sees what is around it.
    """

    inputs: Inputs
    outside: Tensor  # int64 [B, ...], 255 outside the image, else 0
    chances: Tensor  # [B, `unlabelled_chances`]
    whole: Inputs  # what ``inputs`` is part of, or is
    window: Window | None  # which part; None: all

    def first(self, count: int) -> "Unlabelled":
        """The first ``count`` images."""
        inputs, whole = ({name: v[:count] for name, v in some.items()} for some in (self.inputs, self.whole))
        window = self.window and Window(self.window.corner[:count], self.window.size)
        return Unlabelled(inputs, self.outside[:count], self.chances[:count], whole, window)


@dataclass
class Learnt:
    """What a method gives: the parts of the loss, weighted, whose sum is the loss; and features with their labels.

    ``seen`` holds for the memory bank: output, labels (None: the predicted classes) and whether they are true.
    """

    losses: dict[str, Tensor]
    seen: list[tuple[Output, Tensor | None, bool]]


def supervised(step: Step) -> Learnt:
    """Learn from the labelled images alone."""
    output = _run(step.model, step.labelled, step.hidden)
    return Learnt({"labelled": _labelled_loss(step, output)}, [(output, step.labels, True)])


def ss_net(step: Step, more: Unlabelled) -> Learnt:
    """Smoothness of all images in the direction that changes the prediction most."""
    both = _joined(step.labelled, more.inputs)
    output = _run(step.model, both)
    labelled, unlabelled = _split(output, len(step.labels))
    params = step.params.ss_net
    smooth = virtual_adversarial_loss(
        step.model, both["image"], params.xi, params.eps, target=output.logits.float().softmax(dim=1),
        generator=step.generator, extras=extras_of(both),
    )  # fmt: skip
    losses = {
        "labelled": _labelled_loss(step, labelled),
        "smooth": params.weight * step.params.rise(step.done) * smooth,
    }
    own = torch.where(more.outside == IGNORE, IGNORE, unlabelled.logits.argmax(dim=1))
    return Learnt(losses, [(labelled, step.labels, True), (unlabelled, own, False)])


def semiseg(step: Step, more: Unlabelled) -> Learnt:
    """Pseudo-labels of the teacher, weighed by their confidence, for strong views mixed by class."""
    params, rise = step.params.semiseg, step.params.rise(step.done)
    confidence, pseudo = _predicted(step.teacher, more)
    # ClassMix (Olsson et al., WACV 2021): half of the classes of another image are pasted
    shape, device = (len(pseudo), len(step.model.config.classes) + 1), step.generator.device
    drawn_BC = torch.rand(shape, generator=step.generator, device=device) < 0.5
    drawn_BC[:, -1] = False  # what lies outside
    other = pseudo.roll(1, dims=0)
    index = torch.where(other == IGNORE, drawn_BC.shape[1] - 1, other).flatten(1)
    box = drawn_BC.gather(1, index).view_as(other)[:, None]
    view = strong_view(more.inputs, more.chances[:, :STRONG_CHANCES], step.params)
    view, pseudo = pasted(view, _rolled(view), box), torch.where(box[:, 0], other, pseudo)
    confidence = torch.where(box[:, 0], confidence.roll(1, dims=0), confidence)
    output = _run(step.model, _joined(step.labelled, view), _extended(step.hidden, len(pseudo)))
    labelled, unlabelled = _split(output, len(step.labels))
    log_probability = unlabelled.logits.float().log_softmax(dim=1)
    entropy = -(log_probability.exp() * log_probability).sum(dim=1).mean()
    guessed = dice_cross_entropy(unlabelled.logits, pseudo, pixel_weights=confidence**params.sharpness)
    losses = {
        "labelled": _labelled_loss(step, labelled),
        "pseudo": params.weight * rise * guessed,
        "entropy": params.entropy_weight * rise * entropy,
    }
    return Learnt(losses, [(labelled, step.labels, True), (unlabelled, pseudo, False)])


def unimatch(step: Step, more: Unlabelled) -> Learnt:
    """Confident predictions of the weak view are labels for two strong views, and for features that drop out."""
    model, params, size = step.model, step.params.unimatch, step.labels.shape[1:]
    count = len(step.labels)
    both, hidden = _joined(step.labelled, more.inputs), _extended(step.hidden, len(more.outside))
    levels = model.encode(both["image"], extras_of(both), hidden)
    dropped = [_drop_channels(level[count:], params.dropout, step.generator) for level in levels]
    output = model.decode([torch.cat(pair) for pair in zip(levels, dropped, strict=True)], size)
    labelled, rest = _split(output, count)
    weak, perturbed = _split(rest, len(more.outside))
    confidence, pseudo = _predicted(step.teacher, more) if params.teacher else _most_likely(weak.logits, more)
    weight = params.weight * step.params.rise(step.done)
    views, labels, trust = [], [], []
    for chances in more.chances.chunk(2, dim=1):
        of_colour, of_box = chances.split((STRONG_CHANCES, box_chances(len(size))), dim=1)
        box = random_boxes(of_box, size)
        view = strong_view(more.inputs, of_colour, step.params)
        views.append(pasted(view, _rolled(view), box))
        labels.append(torch.where(box[:, 0], pseudo.roll(1, dims=0), pseudo))
        trust.append(torch.where(box[:, 0], confidence.roll(1, dims=0), confidence) >= params.threshold)
    strong = _run(model, _joined(*views))
    of_strong = dice_cross_entropy(strong.logits, torch.cat(labels), pixel_weights=torch.cat(trust).float())
    sure = (confidence >= params.threshold).float()
    of_dropped = dice_cross_entropy(perturbed.logits, pseudo, pixel_weights=sure)
    losses = {  # the mean of the two strong views, so that each counts 0.125
        "labelled": 0.5 * _labelled_loss(step, labelled),
        "strong": 0.25 * weight * of_strong,
        "dropped": 0.25 * weight * of_dropped,
    }
    certain = torch.where(confidence >= params.threshold, pseudo, IGNORE)
    return Learnt(losses, [(labelled, step.labels, True), (weak, certain, False)])


def bcp(step: Step, more: Unlabelled) -> Learnt:
    """Labelled rectangles in unlabelled images and the reverse; first, labelled ones in labelled images."""
    count = min(len(step.labels), len(more.outside))
    labelled, labels = {name: values[:count] for name, values in step.labelled.items()}, step.labels[:count]
    box = square_boxes(more.chances[:count], labels.shape[1:])
    if step.done < step.params.bcp.pretrain:
        mixed = torch.where(box[:, 0], labels.roll(1, dims=0), labels)
        output = _run(step.model, pasted(labelled, _rolled(labelled), box))
        loss = dice_cross_entropy(output.logits, mixed, step.class_weights)
        return Learnt({"labelled": loss, "pseudo": torch.zeros_like(loss)}, [(output, mixed, True)])
    unlabelled = more.first(count)
    _, pseudo = _predicted(step.teacher, unlabelled)
    if step.params.bcp.largest_part:
        pseudo = largest_parts(pseudo, len(step.model.config.classes))
    inward, outward = pasted(labelled, unlabelled.inputs, box), pasted(unlabelled.inputs, labelled, box)
    output = _run(step.model, _joined(inward, outward))
    has_label = torch.cat([~box[:, 0], box[:, 0]])
    true = torch.where(has_label, torch.cat([labels] * 2), IGNORE)
    guessed = torch.where(has_label, IGNORE, torch.cat([pseudo] * 2))
    losses = {
        "labelled": dice_cross_entropy(output.logits, true, step.class_weights),
        "pseudo": step.params.bcp.weight * dice_cross_entropy(output.logits, guessed),
    }
    return Learnt(losses, [(output, true, True), (output, guessed, False)])


def largest_parts(labels: Tensor, classes: int) -> Tensor:
    """Of each class but 0, in each image, the largest connected part; the others become 0. All on the device.

    Args:
        labels: class ids, int64 [B, H, W] or [B, H, W, Z], 255 = ignore. Corners connect, as in the code of Bai et al.
    """
    members_CB = torch.arange(1, classes, device=labels.device).view(-1, *[1] * labels.ndim) == labels  # (C, B, ...)
    parts_BN = _parts(members_CB, labels).flatten(1)
    sizes_BN = torch.zeros_like(parts_BN).scatter_add_(1, parts_BN, torch.ones_like(parts_BN))
    size_CB = torch.where(members_CB, sizes_BN.gather(1, parts_BN).view_as(labels), 0)
    largest_CB = size_CB.amax(tuple(range(2, size_CB.ndim)), keepdim=True)
    stays_B = ((size_CB == largest_CB) & members_CB).any(dim=0)
    return torch.where(stays_B | (labels == IGNORE), labels, 0)


def _parts(members_CB: Tensor, labels: Tensor) -> Tensor:
    """A number for each connected part of a class in an image, the last of its pixels', int64 [B, ...].

    Pixels point to a pixel of their part. Each that has a neighbour of its class which points further takes along what
    it points to itself, so that parts of parts join in few rounds. After `_ROUNDS` of them, a GPU is asked whether the
    last changed anything.
    """
    count, shape = labels[0].numel(), labels.shape
    largest_around = F.max_pool2d if labels.ndim == 3 else F.max_pool3d
    own = torch.arange(count, device=labels.device).repeat(len(labels), 1)
    while True:
        for _ in range(_ROUNDS):
            before = own
            numbered = torch.where(members_CB, own.view(shape) + 1.0, 0.0)  # exact in float32: below 2^24 pixels
            around = torch.where(members_CB, largest_around(numbered, 3, 1, 1), 0.0).amax(dim=0).flatten(1)
            furthest = torch.where(around > 0, around.long() - 1, own)
            own = furthest.scatter_reduce(1, own, furthest, "amax")
            own = own.gather(1, own)
            own = own.gather(1, own)
        if torch.equal(own, before):
            return own.view(shape)


SEMI_SUPERVISED: dict[str, Callable[[Step, Unlabelled], Learnt]] = {
    "ss_net": ss_net,
    "semiseg": semiseg,
    "unimatch": unimatch,
    "bcp": bcp,
}


def _labelled_loss(step: Step, output: Output) -> Tensor:
    return dice_cross_entropy(output.logits, step.labels, step.class_weights)


def _run(model: SegmentationModel, inputs: Inputs, hidden: dict[str, Tensor] | None = None) -> Output:
    levels = model.encode(inputs["image"], extras_of(inputs), hidden)
    return model.decode(levels, inputs["image"].shape[2:])


@torch.no_grad()
def _predicted(teacher: SegmentationModel, more: Unlabelled) -> tuple[Tensor, Tensor]:
    """What the teacher makes of the images, see `_most_likely`."""
    logits = _run(teacher, more.whole).logits
    return _most_likely(logits if more.window is None else more.window.of(logits), more)


def _most_likely(logits: Tensor, more: Unlabelled) -> tuple[Tensor, Tensor]:
    """Confidence and class of each pixel, [B, ...] each, without gradient; 255 outside the image."""
    confidence, pseudo = logits.detach().float().softmax(dim=1).max(dim=1)
    return confidence, torch.where(more.outside == IGNORE, IGNORE, pseudo)


def _joined(*inputs: Inputs) -> Inputs:
    return {name: torch.cat([part[name] for part in inputs]) for name in inputs[0]}


def _extended(hidden: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """``hidden`` for so many more images, whose further inputs are not hidden."""
    return {name: F.pad(values, (0, count)) for name, values in hidden.items()}


def _rolled(inputs: Inputs) -> Inputs:
    return {name: values.roll(1, dims=0) for name, values in inputs.items()}


def _split(output: Output, count: int) -> tuple[Output, Output]:
    return Output(*(values[:count] for values in output)), Output(*(values[count:] for values in output))


def _drop_channels(level: Tensor, share: float, generator: torch.Generator) -> Tensor:
    stays_BC = torch.rand(level.shape[:2], generator=generator, device=generator.device) >= share
    return level * (stays_BC.to(level.dtype) / (1 - share))[(..., *[None] * (level.ndim - 2))]
