"""A small captioning model on grid features: train from the stored ones, try another network with live ones.

    python examples/captioning.py data/demo data/grids/efficientnet/global --name efficientnet
    python examples/captioning.py data/demo none --name clip --features live --every 100

An LSTM looks at the grid, by attention, and says one word after the other (Xu et al., "Show, Attend and Tell", 2015).
The captions are the recording's task and where the object lies, as its positions tell. `open_grids` is the switch: both
ways give the same numbers, but live ones are computed in each epoch anew.
"""

from argparse import ArgumentParser
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from sightline.clip.live import open_grids
from sightline.clip.params import GridParams
from sightline.core.errors import UserError
from sightline.core.params import parse_yaml
from sightline.recording.frames import read_index

START, END = 0, 1  # word ids


class Captioner(nn.Module):
    """Grids [B, P, C] and the words so far -> scores of the next word."""

    def __init__(self, channels: int, words: int, width: int = 128) -> None:
        super().__init__()
        self.patches = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, width))
        self.place = nn.Parameter(torch.zeros(1, 49, width))
        self.words = nn.Embedding(words, width)
        self.query, self.cell = nn.Linear(width, width), nn.LSTMCell(2 * width, width)
        self.scores = nn.Linear(2 * width, words)

    def forward(self, grids: Tensor, words: Tensor) -> Tensor:
        """Scores [B, T, words] of the words that follow each of ``words`` [B, T]."""
        patches, state, said = self.patches(grids) + self.place[:, : grids.shape[1]], None, []
        for word in words.unbind(1):
            hidden = patches.mean(dim=1) if state is None else state[0]
            weights = (patches @ self.query(hidden)[..., None] / hidden.shape[1] ** 0.5).softmax(dim=1)
            seen = (weights * patches).sum(dim=1)
            state = self.cell(torch.cat([self.words(word), seen], dim=1), state)
            said.append(self.scores(torch.cat([state[0], seen], dim=1)))
        return torch.stack(said, dim=1)

    @torch.inference_mode()
    def caption(self, grids: Tensor, most: int = 20) -> Tensor:
        """The likeliest words [B, T], one after the other."""
        words = torch.full((len(grids), 1), START)
        while words.shape[1] <= most and not (words == END).any(dim=1).all():
            words = torch.cat([words, self(grids, words)[:, -1:].argmax(dim=2)], dim=1)
        return words


def captions_of(frames: pd.DataFrame) -> list[str]:
    """Task and place of the object in each frame: left or right, near or far, beside the middle of all places."""
    places = np.stack(frames["object_position"])[:, :2]
    far, left = (places > np.median(places, axis=0)).T
    tasks = frames["task"] if "task" in frames else ["do the task"] * len(frames)
    return [
        f"{task} which is {'left' if is_left else 'right'} and {'far' if is_far else 'near'}"
        for task, is_left, is_far in zip(tasks, left, far, strict=True)
    ]


def main(args) -> float:
    torch.manual_seed(0)
    params = GridParams(**parse_yaml(args.params.read_text(), str(args.params))["grids"][args.name])
    grids = open_grids(args.features, args.store, [args.recording / "rgb" / args.camera], params)
    frames = pd.read_parquet(args.recording / "frames.parquet").merge(read_index(args.index)[["frame_id", "split"]])
    frames = frames[frames["step"] == 0] if args.every == 0 else frames[:: args.every]
    frames = frames[frames["frame_id"].isin(grids.image_ids)]
    texts = captions_of(frames)
    vocabulary = ["<start>", "<end>", *sorted({word for text in texts for word in text.split()})]
    ids = {word: i for i, word in enumerate(vocabulary)}
    spelt = [[START, *(ids[word] for word in text.split()), END] for text in texts]
    longest = max(map(len, spelt))
    words = torch.tensor([line + [END] * (longest - len(line)) for line in spelt])
    is_train = (frames["split"] == "train").to_numpy()
    rows, held_out = np.flatnonzero(is_train), np.flatnonzero(~is_train)
    image_ids = frames["frame_id"].to_numpy()

    model = Captioner(grids.shape[2], len(vocabulary))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    rng = np.random.default_rng(0)
    for epoch in range(args.epochs):
        losses = []
        for some in np.array_split(rng.permutation(rows), -(-len(rows) // 32)):
            seen = grids.read_tensor(image_ids[some]).float()  # stored, or computed now
            scores = model(seen, words[some, :-1])
            loss = nn.functional.cross_entropy(scores.flatten(0, 1), words[some, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        print(f"epoch {epoch + 1} of {args.epochs}: loss {np.mean(losses):.3f}")
    said = model.caption(grids.read_tensor(image_ids[held_out]).float(), longest)
    lines = [" ".join(vocabulary[i] for i in line if i > END) for line in said.tolist()]
    true = [texts[i] for i in held_out]
    right = float(np.mean([a == b for a, b in zip(lines, true, strict=True)]))
    usual = pd.Series([texts[i] for i in rows]).mode()[0]
    print(f"held out: {true[0]!r}, said: {lines[0]!r}")
    print(f"right: {right:.0%} of {len(true)}; always the usual caption: {np.mean([usual == t for t in true]):.0%}")
    return right


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recording", type=Path, help="folder of a recording with object_position")
    parser.add_argument("store", type=Path, help="grids that the stage clip_grids wrote; live ones need none")
    parser.add_argument("--features", choices=["stored", "live"], default="stored")
    parser.add_argument("--name", default="efficientnet", help="section of grids in params.yaml")
    parser.add_argument("--camera", default="global")
    parser.add_argument("--index", type=Path, default=Path("data/index/frames.parquet"))
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--every", type=int, default=10, help="take every so many frames; 0: the first of each episode")
    parser.add_argument("--epochs", type=int, default=15)
    try:
        main(parser.parse_args())
    except UserError as error:
        raise SystemExit(f"captioning: error: {error}") from None
