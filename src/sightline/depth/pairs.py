"""Pairs of frames a few steps apart, and how the joints move between them: what inverse dynamics learns from."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sightline.core.errors import UserError
from sightline.depth.store import DepthStore
from sightline.recording.frames import read_frames, recording_key

GAPS = 4  # steps between the frames of a pair at most


@dataclass(frozen=True)
class Pairs:
    """For each frame of a store, the later frames of its episode that it can be paired with.

    A pair is a pure function of the frame and of a number in [0, 1).
    """

    later: np.ndarray  # int64 [N, GAPS], rows of the store, nearest first; the row itself behind the last
    count: np.ndarray  # int64 [N], how many there are
    positions: np.ndarray  # float32 [N, J]; between frames two steps apart each moves by 1 in the mean square

    @property
    def joints(self) -> int:
        """Joints that move."""
        return self.positions.shape[1]

    def draw(self, rows: np.ndarray, chance_B: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Partners of ``rows`` -> their rows int64 [B], the change of the joints float32 [B, J], and which have one."""
        count_B = self.count[rows]
        partner_B = self.later[rows, (chance_B * count_B).astype(np.int64).clip(0, np.maximum(count_B - 1, 0))]
        return partner_B, self.positions[partner_B] - self.positions[rows], count_B > 0


def read_pairs(frames: Path, store: DepthStore) -> Pairs | None:
    """Pairs of the store's frames, with the joints of the table ``frames``; None where that has no joints that move.

    Raises:
        UserError: no such table, one of another recording, or one that lacks frames of the store.
    """
    table = read_frames(frames)
    if store.recording and recording_key(table) != store.recording:
        raise UserError(f"{frames}: the table of another recording than {store.path}; give the one it was made from")
    table = table.set_index("frame_id")
    missing = np.setdiff1d(store.frame_id, table.index)
    if len(missing):
        raise UserError(f"{frames}: lacks {len(missing)} frames of {store.path} (first {missing[0]})")
    if "joints" not in table:
        return None
    table = table.loc[store.frame_id]
    episode, step = table["episode"].to_numpy(), table["step"].to_numpy()
    row_of = {key: row for row, key in enumerate(zip(episode.tolist(), step.tolist(), strict=True))}
    later_NG, count_N = np.repeat(np.arange(len(step))[:, None], GAPS, axis=1), np.zeros(len(step), np.int64)
    for row, (one, at) in enumerate(row_of):
        rows = [row_of[one, at + gap] for gap in range(1, GAPS + 1) if (one, at + gap) in row_of]
        later_NG[row, : len(rows)], count_N[row] = rows, len(rows)
    joints = np.stack(table["joints"].tolist()).astype(np.float64)
    train = store.rows("train")
    train = train[count_N[train] > 0]
    change = joints[later_NG[train, np.minimum(2, count_N[train]) - 1]] - joints[train]
    size = np.sqrt(np.square(change).mean(axis=0)) if len(change) else np.zeros(joints.shape[1])
    moving = size > 1e-6
    return Pairs(later_NG, count_N, (joints[:, moving] / size[moving]).astype(np.float32)) if moving.any() else None
