"""What the figures mean, in sentences: a model beside its baselines, with the intervals that evaluations store."""

from dataclasses import dataclass
from typing import Any

LITTLE = 0.05  # without an interval, a smaller difference counts as none
MEASURES = {  # key -> name, unit, whether higher is better
    "rmse_mm": ("reconstruction error (RMSE)", " mm", False),
    "nmse": ("error of the actions (NMSE)", "", False),
    "dice_mean": ("overlap with the truth (Dice)", "", True),
    "success_rate": ("share of successes", "", True),
    "retrieval": ("finding another frame of the same moment (recall)", "", True),
    "joints": ("telling the joints (R²)", "", True),
    "object_position": ("telling where the object is (R²)", "", True),
    "gripper_position": ("telling where the gripper is (R²)", "", True),
    "goal_position": ("telling where the goal is (R²)", "", True),
    "contact": ("telling whether the gripper touches the object (R²)", "", True),
}
OTHERS = {  # measure -> what it is of, where that is not what the chapter is about
    "success_rate": "In rollouts, the policy",
    **dict.fromkeys(
        [measure for measure, (noun, _, _) in MEASURES.items() if noun.startswith(("finding", "telling"))],
        "The embedding",
    ),
}
WORDS = {
    "mean": "the mean training action", "hold": "holding the joints still", "linear": "a linear map of the joints",
    "previous_action": "repeating the last action", "replay": "replaying a demonstration", "dct": "a cosine transform",
    "mean_image": "the mean image", "nearest_train_frame": "the nearest training frame", "pca": "PCA",
    "grid": "a coarse grid", "all_background": "background everywhere", "mean_mask": "the most frequent mask",
    "mean_colour": "the nearest mean colour", "joints_only": "joints alone", "images_only": "images alone",
    "expert": "the scripted expert", "train_loss": "training loss", "val_loss": "validation loss",
    "reconstruction_results": "Reconstructions, from best to worst", "latent_analysis": "The embedding's directions",
    "interpolation": "Between two frames", "actions": "Actions: recorded and predicted", "episodes": "Rollouts",
    "overlays": "Masks: true and predicted, from best to worst", "error_by_step": "Error by step of the chunk",
    "confidence": "Is the confidence right?", "curves": "Learning curve",
}  # fmt: skip


@dataclass(frozen=True)
class Score:
    """A value of a model or of a baseline."""

    name: str
    value: float
    interval: tuple[float, float] | None = None  # 95 %
    is_model: bool = False


@dataclass(frozen=True)
class Verdict:
    """A sentence, and its result in a word or two."""

    result: str
    text: str


def words(name: str) -> str:
    """A key in words."""
    return WORDS.get(name, name.replace("_", " "))


def compared(figures: dict[str, Any]) -> dict[str, list[Score]]:
    """What was measured of the model, which comes first, and of what it stands beside: measure -> scores."""
    whole = figures.get("codes") or {"model": figures, **figures.get("baselines", {})}
    embedding = figures.get("embedding", {})
    tables = {name: ("r2", of) for name, of in embedding.get("probe", {}).items()}
    tables["retrieval"] = "recall_at_1", embedding.get("retrieval", {})
    found = {}
    for measure in MEASURES:
        key, named = tables.get(measure, (measure, whole))
        given = [
            Score(name, of[key], _interval(of.get(f"{key}_interval")), i == 0)
            for i, (name, of) in enumerate(named.items())
            if isinstance(of.get(key), float)
        ]
        if given and given[0].is_model:
            found[measure] = given
    return found


def judge(subject: str, measure: str, given: list[Score]) -> Verdict:
    """Whether the model, the first of the scores, is better than the best of the others."""
    noun, unit, higher = MEASURES[measure]
    own, others = given[0], [score for score in given[1:] if score.name != "expert"]
    has = f"{noun} {own.value:.3g}{unit}"
    of_own = f", 95 % interval {own.interval[0]:.3g} to {own.interval[1]:.3g}" if own.interval else ""
    if not others:
        return Verdict("alone", f"{subject}: {has}{of_own}. There is nothing to compare it with.")
    best = (max if higher else min)(others, key=lambda score: score.value)
    sign, size = (1, 1.0) if higher else (-1, best.value or 1e-12)  # shares differ by points, errors by percent

    def show(gain: float) -> str:
        return f"{100 * gain:.0f} points" if higher else f"{gain:.0%}"

    gain, *ends = (sign * (value - best.value) / size for value in (own.value, *sorted(own.interval or ())[::sign]))
    note = f", 95 % interval {show(ends[0]).removesuffix(' points')} to {show(ends[1])}" if ends else ""
    way, more = "better" if gain > 0 else "worse", f"{show(abs(gain))}"
    tail = f"{note} ({has} against {best.value:.3g}{unit}{of_own}).{'' if ends else ' No interval is stored.'}"
    if max(own.value, best.value) < 0:  # of R², which is 0 for a constant
        return Verdict("no better", f"{subject} is of no use, and neither are simple ones{tail}")
    if ends and gain and ends[0] <= 0 <= ends[1]:
        return Verdict("undecided", f"{subject} may be no better than {words(best.name)}: {more} {way}{tail}")
    if not gain or (not ends and abs(gain) < LITTLE):
        how = f"{more} {way}" if gain else "it has the same"
        return Verdict("no better", f"{subject} is no better than {words(best.name)}: {how}{tail}")
    return Verdict(way, f"{subject} {'beats' if gain > 0 else 'is worse than'} {words(best.name)} by {more}{tail}")


def judge_grids(subject: str, figures: dict[str, Any]) -> list[Verdict]:
    """Whether grids are those that other code computes."""
    if "min_cosine" not in figures:
        return []
    text = f"{subject} agree with the network's own forward pass: cosine {figures['min_cosine']:.5f} or more"
    if figures.get("random_weights"):
        return [
            Verdict("no meaning", f"{text}; but they come from random weights, and only serve to try the pipeline.")
        ]
    return [Verdict("right", f"{text}.")]


def _interval(ends: list[float] | None) -> tuple[float, float] | None:
    """The interval, where it is one: of a single episode, an evaluation stores the value twice."""
    return (ends[0], ends[1]) if ends and ends[0] < ends[1] else None
