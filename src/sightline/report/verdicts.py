"""What the figures mean, in sentences: a model beside its baselines, with the intervals that evaluations store."""

from dataclasses import dataclass
from typing import Any

LITTLE = 0.05  # without an interval, a smaller difference counts as none
MEASURES = {  # key -> name, unit, whether higher is better
    "rmse_mm": ("reconstruction error (RMSE)", " mm", False),
    "nmse": ("error of the actions (NMSE)", "", False),
    "dice_mean": ("overlap with the truth (Dice)", "", True),
    "success_rate": ("share of successes", "", True),
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
EMBEDDED = {  # of an embedding -> key of the score, what it tells
    "retrieval": ("recall_at_1", "finding another frame of the same moment"),
    "joints": ("r2", "telling the joints"),
    "object_position": ("r2", "telling where the object is"),
    "gripper_position": ("r2", "telling where the gripper is"),
    "goal_position": ("r2", "telling where the goal is"),
    "contact": ("r2", "telling whether the gripper touches the object"),
}


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


def scores(figures: dict[str, Any]) -> tuple[str, list[Score]]:
    """The measure of an evaluation, and the scores of the model (first) and of what it stands beside; "" for none."""
    codes, baselines = figures.get("codes"), figures.get("baselines", {})
    for measure in MEASURES:
        if codes and measure in next(iter(codes.values())):
            named = {name: of[measure] for name, of in codes.items() if of[measure] is not None}
            intervals = {name: of.get(f"{measure}_interval") for name, of in codes.items()}
        elif isinstance(figures.get(measure), float):
            named = {"model": figures[measure]} | {n: of[measure] for n, of in baselines.items() if measure in of}
            intervals = {name: of.get(f"{measure}_interval") for name, of in {"model": figures, **baselines}.items()}
        else:
            continue
        first, kept = next(iter(named)), {name: value for name, value in named.items() if value is not None}
        return measure, [Score(name, v, _interval(intervals.get(name)), name == first) for name, v in kept.items()]
    return "", []


def judge(subject: str, measure: str, given: list[Score]) -> Verdict:
    """Whether the model, the first of the scores, is better than the best of the others."""
    noun, unit, higher = MEASURES[measure]
    own = given[0]
    others = [score for score in given[1:] if score.name != "expert"]
    has = f"{noun} {own.value:.3g}{unit}"
    of_own = f", 95 % interval {own.interval[0]:.3g} to {own.interval[1]:.3g}" if own.interval else ""
    if not others:
        return Verdict("alone", f"{subject}: {has}{of_own}. There is nothing to compare it with.")
    best = (max if higher else min)(others, key=lambda score: score.value)
    against = f"({has} against {best.value:.3g}{unit}{of_own})"
    sign, size = (1, 1.0) if higher else (-1, best.value or 1e-12)  # shares differ by points, errors by percent

    def show(gain: float) -> str:
        return f"{100 * gain:.0f} points" if higher else f"{gain:.0%}"

    gain, note, is_clear = sign * (own.value - best.value) / size, "", True
    if own.interval:
        low, high = sorted(sign * (end - best.value) / size for end in own.interval)
        is_clear, note = low > 0 or high < 0, f", 95 % interval {show(low).removesuffix(' points')} to {show(high)}"
    than, tail = words(best.name), f" {against}." + ("" if own.interval else " No interval is stored.")
    way = "better" if gain > 0 else "worse"
    if not gain:
        return Verdict("no better", f"{subject} is no better than {than}: it has the same{note}{tail}")
    if own.interval and not is_clear:
        return Verdict("undecided", f"{subject} may be no better than {than}: {show(abs(gain))} {way}{note}{tail}")
    if not own.interval and abs(gain) < LITTLE:
        return Verdict("no better", f"{subject} is no better than {than}: {show(abs(gain))} {way}{tail}")
    verb = "beats" if gain > 0 else "is worse than"
    return Verdict(way, f"{subject} {verb} {than} by {show(abs(gain))}{note}{tail}")


def judge_embedding(subject: str, embedding: dict[str, Any]) -> list[Verdict]:
    """What the codes are good for, each beside the best simple one."""
    verdicts = []
    tables = {"retrieval": embedding.get("retrieval", {})} | embedding.get("probe", {})
    for name, of in tables.items():
        if name not in EMBEDDED or len(of) < 2:
            continue
        key, task = EMBEDDED[name]
        (_, own), *others = ((code, figures[key]) for code, figures in of.items())
        best, value = max(others, key=lambda other: other[1])
        interval = _interval(next(iter(of.values())).get(f"{key}_interval"))
        known = f"95 % interval {interval[0]:.3g} to {interval[1]:.3g}" if interval else "No interval is stored"
        shown = f"({own:.3g} against {value:.3g}). {known}."
        if max(own, value) <= 0:
            verdicts.append(
                Verdict("no better", f"{subject} is of no use for {task}, and nor are simple codes {shown}")
            )
            continue
        result = "better" if own - value >= LITTLE * abs(value) else "no better"
        verb = "is better than" if result == "better" else "is no better than"
        verdicts.append(Verdict(result, f"{subject} {verb} {words(best)} at {task} {shown}"))
    return verdicts


def judge_grids(subject: str, figures: dict[str, Any]) -> Verdict | None:
    """Whether grids are those that other code computes."""
    if "min_cosine" not in figures:
        return None
    text = f"{subject} agree with the network's own forward pass: cosine {figures['min_cosine']:.5f} or more"
    if figures.get("random_weights"):
        return Verdict("no meaning", f"{text}; but they come from random weights, and serve only to try the pipeline.")
    return Verdict("right", f"{text}.")


def _interval(ends: Any) -> tuple[float, float] | None:
    """The interval, where it is one: of a single episode, an evaluation stores the value twice."""
    return (float(ends[0]), float(ends[1])) if ends and ends[0] < ends[1] else None
