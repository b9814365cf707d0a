"""A memory bank of features for each class, and the losses that pull new features towards it.

The bank and its learned selectors: Alonso et al., "Semi-Supervised Semantic Segmentation with Pixel-Level Contrastive
Learning from a Class-wise Memory Bank" (ICCV 2021), there a queue. As one part of a semi-supervised method, replaced at
every step: Wu et al., "Exploring Smoothness and Class-Separation for Semi-supervised Medical Image Segmentation"
(SS-Net, MICCAI 2022). Where their texts and their published code differ, the defaults here compute what the code of
SS-Net computes, and an option gives the other reading. Its selectors and its heads are parts of its network; here they
are off until asked for, by name or by the preset `ss_net`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sightline.core.errors import UserError
from sightline.segmentation.arguments import (
    check_floating,
    classes_of_rows,
    finite_rows,
    flatten,
    full_precision,
    sums_are_finite,
)
from sightline.segmentation.census import Census, Rows, rows_of, take
from sightline.segmentation.contrastive import (
    attraction,
    inter_class_loss,
    intra_class_loss,
    mean_directions,
    weighted_and_plain_means,
)
from sightline.segmentation.presets import PRESETS, PrototypeOptions
from sightline.segmentation.selectors import (
    evenly_spaced,
    feature_weights,
    head,
    in_eval_mode,
    rows_by_class,
    scores,
    selector,
    weigh_memory,
)


class ContrastivePrototypeManager(nn.Module):
    """Keeps up to K rows of features of each class, and computes the losses of new features against them.

        manager = ContrastivePrototypeManager(num_classes=4, feature_dim=32)
        loss, parts = manager.update_and_compute_loss(features, logits, labels)          # labelled images
        more, parts = manager.update_and_compute_loss(features, logits, None, False)     # unlabelled images
        (loss + more).backward()

    The bank is two buffers: ``memory`` [C, K, D], rows of a class first and zeros after them, and ``memory_count`` [C].
    It moves with the module, is part of its state dict, has no gradient, and keeps the module's precision. Losses are
    computed in float32 or, for float64 features, in float64, also under autocast.

    A row with NaN or infinity counts as one without a class: it is neither stored nor compared, moves no statistics and
    gets a gradient of 0. The bank judges rows in its own precision, in which 1e5 is infinite if that is float16.

    The selectors work in the mode (train or eval) that the module is in: in train mode, ranking rows and computing the
    loss both move the running statistics of their batch normalisation, as in SS-Net.

    In a distributed run, each process has a bank of its own: see `sightline.segmentation.training`.

    Args: those of `PrototypeOptions`; the first four may also be positional.

    Raises:
        ValueError: an argument out of its range.
    """

    memory: Tensor
    memory_count: Tensor

    def __init__(
        self,
        num_classes: int,
        feature_dim: int,
        elements_per_class: int = PrototypeOptions.elements_per_class,
        use_learned_selector: bool = PrototypeOptions.use_learned_selector,
        **options: Any,
    ) -> None:
        super().__init__()
        self.options = PrototypeOptions(num_classes, feature_dim, elements_per_class, use_learned_selector, **options)
        self.num_classes, self.feature_dim = num_classes, feature_dim
        self.register_buffer("memory", torch.zeros(num_classes, elements_per_class, feature_dim))
        self.register_buffer("memory_count", torch.zeros(num_classes, dtype=torch.int64))
        self.feature_selectors: nn.ModuleList | None = None
        self.memory_selectors: nn.ModuleList | None = None
        if use_learned_selector:
            self.feature_selectors = nn.ModuleList(selector(feature_dim) for _ in range(num_classes))
            self.memory_selectors = nn.ModuleList(selector(feature_dim) for _ in range(num_classes))
        self.projection: nn.Module | None = None
        self.prediction: nn.Module | None = None
        if self.options.heads:
            self.projection = head(self.options.rows_dim, feature_dim)
            self.prediction = head(feature_dim, feature_dim)

    @classmethod
    def from_preset(cls, name: str, num_classes: int, feature_dim: int, **options: Any) -> Self:
        """The options that belong together: "ss_net", "semiseg" (Alonso et al.) or "document", see `PRESETS`.

        Args:
            name: one of these.
            options: further arguments of the constructor; they win over the preset's.

        Raises:
            ValueError: no such preset, or an argument out of its range.
        """
        if name not in PRESETS:
            raise UserError(f"name must be one of {', '.join(PRESETS)}, not {name!r}")
        return cls(num_classes, feature_dim, **{**PRESETS[name], **options})

    def extra_repr(self) -> str:
        elements = self.options.elements_per_class
        return f"num_classes={self.num_classes}, feature_dim={self.feature_dim}, elements={elements}"

    def get_selectors(self) -> tuple[nn.ModuleList | None, nn.ModuleList | None]:
        """Feature selectors and memory selectors, one of each for every class; (None, None) without any."""
        return self.feature_selectors, self.memory_selectors

    # --- the bank

    def memory_rows(self, class_id: int) -> Tensor | None:
        """A copy of the rows stored of a class: [k, D] with k <= K, the newest or best first; None where none is.

        Raises:
            ValueError: no such class.
        """
        self._check_class("class_id", class_id)
        count = int(self.memory_count[class_id])
        return self.memory[class_id, :count].clone() if count else None

    @torch.no_grad()
    def select_elements(self, features: Tensor, class_id: int) -> Tensor:
        """The rows that an update would store, without gradient: [N, D] -> [<= elements_per_update, D].

        All finite rows, in their order, where they fit. Else those that ``selection_order`` puts first by the score of
        the class's feature selector, or, without selectors, evenly spaced ones.

        Raises:
            ValueError: another shape or type, or no such class.
        """
        self._check_class("class_id", class_id)
        self._check_rows("features", features)
        return self._select(self._finite({class_id: features})[class_id], class_id)

    def _select(self, features: Tensor, class_id: int) -> Tensor:
        count, most = len(features), self.options.rows_per_update
        if count <= most:
            return features.detach()  # the selector does not run, and its statistics do not move
        if self.feature_selectors is None:
            places = evenly_spaced(count, most, features.device)
        else:
            score_N = scores(self.feature_selectors[class_id], features)
            places = score_N.argsort(descending=self.options.selection_order == "descending", stable=True)[:most]
        return features.detach()[places]

    @torch.no_grad()
    def update_memory(self, features_dict: Mapping[int, Tensor]) -> None:
        """Store rows: class -> [n, D]; of more than fit, those of `select_elements`. Changes all or none.

        Rows are stored as they are, not scaled, in the bank's precision and on its device. A class that is absent, or
        has no finite rows, keeps what it had.

        Raises:
            ValueError: another shape or type, or no such class.
        """
        for class_id, features in features_dict.items():
            self._check_class("class in features_dict", class_id)
            self._check_rows(f"features_dict[{class_id}]", features)
        self._store(features_dict)

    def _store(self, features_dict: Mapping[int, Tensor]) -> dict[int, int]:
        """Store rows of classes -> how many of each were new."""
        stored = {}
        for class_id, features in self._finite(features_dict).items():
            if not len(features):
                continue
            new = self._select(features, class_id).to(self.memory)
            older, count, most = self.memory[class_id], self.memory_count[class_id], self.options.elements_per_class
            if self.options.update == "replace":
                older, count = torch.zeros_like(older), torch.zeros_like(count)
            self.memory[class_id] = torch.cat([new, older])[:most]
            self.memory_count[class_id] = (count + len(new)).clamp_max(most)
            stored[class_id] = len(new)
        return stored

    def _finite(self, features_dict: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
        """Of each class, the rows that are finite in the bank's precision. Waits for a GPU once if all are."""
        dtype = self.memory.dtype
        sums = [sums_are_finite(rows, dtype).to(self.memory.device) for rows in features_dict.values()]
        if not sums or torch.stack(sums).all():
            return features_dict
        masks = {class_id: finite_rows(rows, dtype) for class_id, rows in features_dict.items()}
        return {c: rows if (mask := masks[c]) is None else rows[mask] for c, rows in features_dict.items()}

    # --- losses

    def contrastive_class_to_class_learned_memory(self, features: Tensor, class_labels: Tensor) -> Tensor:
        """How far features point from the stored rows of their own class; does not change the bank.

        For each class with more than one row here and more than one stored, the mean over all pairs of
        weight x (1 - cosine). Weights of the features come from the feature selectors, which see them without
        gradient; those of a class have a mean of 1.

        Args:
            features: floating point [N, D], or dense [B, D, ...] with any number of axes after D.
            class_labels: whole numbers 0..C-1, or ``ignore_index``: [N] or [B, ...].

        Returns:
            A scalar in 0..2. It has a gradient path to the features, also where no class takes part and it is 0.

        Raises:
            ValueError: another shape or type, or labels out of range.
        """
        rows_ND = flatten("features", features, self.feature_dim)
        ignored = self.options.ignore_index
        classes_N, doubt = classes_of_rows("class_labels", class_labels, features, self.num_classes, ignored)
        part = Rows(rows_ND, rows_ND.detach(), classes_N, classes_N, False, True, [doubt])
        (census,), stored = take([part], self.memory_count, self.memory.dtype, [rows_ND.dtype])
        with torch.autocast(features.device.type, enabled=False):
            weighted_CD, _ = self._means(full_precision(part.features), part.classes, census, stored)
            return self._contrastive(weighted_CD, census, stored)

    def update_and_compute_loss(
        self,
        features: Tensor,
        predictions: Tensor,
        labels: Tensor | None,
        is_labeled: bool = True,
        contrastive_weight: float = 1.0,
        intra_weight: float = 0.1,
        inter_weight: float = 0.1,
        *,
        memory_features: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Store what qualifies, then compute the losses of all rows: one step's part of one kind of images.

        The bank is written in eval mode too; for a validation loss, call `contrastive_class_to_class_learned_memory`.
        Rows with infinite numbers or NaN, which a step in half precision may have, change nothing.

        Args:
            features: floating point [N, D], or dense [B, D, ...] with any number of axes after D; with heads,
                ``input_dim`` in place of D.
            predictions: logits [N, C] or [B, C, ...] of the same rows; no gradient flows into them. Of two classes,
                also one channel with the probability of class 1, [N, 1] or [B, 1, ...]: what a sigmoid gives, not its
                logits. A row whose predictions hold NaN has no predicted class.
            labels: whole numbers 0..C-1, or ``ignore_index``: [N] or [B, ...]. None, of unlabelled images, takes the
                predicted classes.
            is_labeled: False where labels are themselves predicted, for example by a teacher; they are used in the
                losses, but count as unlabelled for ``memory_source``.
            contrastive_weight: factor of `contrastive_class_to_class_learned_memory`. SS-Net ramps it up to 0.1.
            intra_weight: factor of `sightline.segmentation.contrastive.intra_class_loss`, of the rows' own classes.
            inter_weight: factor of `sightline.segmentation.contrastive.inter_class_loss`, of the same.
            memory_features: what is stored in place of ``features``, [N, D] or [B, D, ...]: the output of a network's
                (or a teacher's) projection head where ``features`` are those of its prediction head.

        Returns:
            The weighted sum, a scalar with a gradient path to ``features``, and its parts, without gradient and before
            weighting, on the features' device: contrastive_loss, intra_loss, inter_loss; and total_loss, the sum.

        Raises:
            ValueError: another shape or type, labels out of range, one channel outside 0..1, probabilities where
                ``confidence_threshold`` asks for logits, or ``memory_features`` beside the manager's heads.
        """
        part = self.rows(features, predictions, labels, is_labeled, memory_features=memory_features)
        return self.update_and_compute_losses([part], contrastive_weight, intra_weight, inter_weight)[0]

    def rows(
        self,
        features: Tensor,
        predictions: Tensor,
        labels: Tensor | None,
        is_labeled: bool = True,
        *,
        memory_features: Tensor | None = None,
    ) -> Rows:
        """What `update_and_compute_losses` takes of one kind of images; arguments as of `update_and_compute_loss`."""
        return rows_of(self.options, features, predictions, labels, is_labeled, memory_features)

    def update_and_compute_losses(
        self,
        parts: Sequence[Rows],
        contrastive_weight: float = 1.0,
        intra_weight: float = 0.1,
        inter_weight: float = 0.1,
    ) -> list[tuple[Tensor, dict[str, Tensor]]]:
        """`update_and_compute_loss` of each of ``parts``, in their order, with one wait for a GPU for all of them.

        Another wait comes with each part that stores, and others where rows hold NaN or infinity.
        """
        options, results = self.options, []
        types = [part.features.dtype if self.projection is None else self.memory.dtype for part in parts]
        censuses, stored = take(parts, self.memory_count, self.memory.dtype, types)
        for part, census in zip(parts, censuses, strict=True):
            device = part.features.device.type
            with torch.autocast(device, enabled=False), torch.set_grad_enabled(part.learns):
                # write the bank first, as SS-Net does: the losses below already see this step's rows
                if part.stores:
                    stored = self._remember(part, census, stored)
                # the three losses from the mean directions of the classes of finite rows, and their weighted sum
                rows_ND, present_C = self._embed(part.features), census.members.any(dim=1)
                weighted_CD, means_CD = self._means(rows_ND, part.classes, census, stored)
                contrastive = self._contrastive(weighted_CD, census, stored)
                intra = intra_class_loss(means_CD, present_C)
                inter = inter_class_loss(means_CD, present_C, options.inter_margin, options.eps)
                total = contrastive_weight * contrastive + intra_weight * intra + inter_weight * inter
            told = {"contrastive_loss": contrastive, "intra_loss": intra, "inter_loss": inter, "total_loss": total}
            results.append((total, {name: value.detach() for name, value in told.items()}))
        return results

    def _takes_part(self, census: Census, stored: list[int]) -> list[bool]:
        """Of each class, whether it has more than one row here and more than one stored."""
        return [here > 1 and there > 1 for here, there in zip(census.counts, stored, strict=True)]

    def _means(self, rows_ND: Tensor, classes_N: Tensor, census: Census, stored: list[int]) -> tuple[Tensor, Tensor]:
        """`mean_directions` with the weights of the feature selectors, and without: [C, D] each."""
        members_CN, selectors, eps = census.members, self.feature_selectors, self.options.eps
        if selectors is None:
            means_CD = mean_directions(rows_ND, members_CN, eps)
            return means_CD, means_CD
        takes_part = self._takes_part(census, stored)
        weights_N = feature_weights(selectors, rows_ND.detach(), classes_N, census.counts, takes_part)
        return weighted_and_plain_means(rows_ND, members_CN, eps, weights_N)

    def _contrastive(self, means_CD: Tensor, census: Census, stored: list[int]) -> Tensor:
        """The loss from the means of the classes' rows at length one, weighted if there are selectors."""
        takes_part = self._takes_part(census, stored)
        takes_part_C = (census.members.sum(dim=1) > 1) & (self.memory_count > 1)
        memory_CKD = F.normalize(self.memory.to(means_CD.dtype), dim=2, eps=self.options.eps)  # free places stay zeros
        if self.memory_selectors is not None:
            live = self.options.memory_weights == "live"
            memory_CKD = weigh_memory(self.memory_selectors, memory_CKD, stored, takes_part, live)
        memory_means_CD = memory_CKD.sum(dim=1) / self.memory_count.clamp_min(1)[:, None]
        loss_C = attraction(means_CD, memory_means_CD) * takes_part_C
        of_all = self.options.divisor == "num_classes"
        return loss_C.sum() / (self.num_classes if of_all else takes_part_C.sum().clamp_min(1))

    def _embed(self, features_ND: Tensor) -> Tensor:
        """The prediction of the projection, where there are heads."""
        if self.projection is None or self.prediction is None:
            return full_precision(features_ND)
        features_ND = features_ND.to(self.memory.dtype)
        if len(features_ND) < 2:  # a batch's statistics need two rows, and so does every loss
            return full_precision(in_eval_mode(self.prediction, in_eval_mode(self.projection, features_ND)))
        return full_precision(self.prediction(self.projection(features_ND)))

    @torch.no_grad()
    def _remember(self, part: Rows, census: Census, stored: list[int]) -> list[int]:
        """Store the storable rows -> how many are stored of each class, of which there were ``stored``."""
        rows = rows_by_class(part.storable, census.storable)
        if self.feature_selectors is None:  # what `select_elements` would keep, without copying the rest first
            most = self.options.rows_per_update
            rows = [places[evenly_spaced(len(places), most, places.device)] for places in rows]
        features_dict = {class_id: part.stored[places] for class_id, places in enumerate(rows) if len(places)}
        if self.projection is not None:
            features_dict = {
                class_id: in_eval_mode(self.projection, features.to(self.memory.dtype))
                for class_id, features in features_dict.items()
            }
        new = self._store(features_dict)
        replaces, most = self.options.update == "replace", self.options.elements_per_class
        return [
            count if class_id not in new else min(new[class_id] + (0 if replaces else count), most)
            for class_id, count in enumerate(stored)
        ]

    # --- arguments

    def _check_class(self, name: str, class_id: int) -> None:
        if not 0 <= class_id < self.num_classes:
            raise UserError(f"{name} must be 0..{self.num_classes - 1}, not {class_id}")

    def _check_rows(self, name: str, features: Tensor) -> None:
        check_floating(name, features)
        if features.ndim != 2 or features.shape[1] != self.feature_dim:
            raise UserError(f"{name} must be [N, {self.feature_dim}], not {list(features.shape)}")
