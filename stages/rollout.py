"""Let a trained policy drive the simulated robot in scenes that it has not seen, and compare it with simple drivers."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from sightline.core.cli import run_stage
from sightline.core.params import Section
from sightline.demo.render import RenderParams
from sightline.demo.simulate import SimulateParams
from sightline.rollout.rollouts import RolloutParams, roll_out


class Params(Section):
    rollout: RolloutParams = RolloutParams()
    simulate: SimulateParams = SimulateParams()
    render: RenderParams = RenderParams()


def main(args: Namespace, params: Params) -> None:
    figures = roll_out(
        args.weights, args.views, args.output, params.rollout, params.simulate, params.render, args.processes
    )
    for name, of in {"policy": figures, **figures["baselines"]}.items():
        low, high = of["success_rate_interval"]
        print(f"{name:8}{of['success_rate']:6.2f} success, 95 % interval {low:.2f} to {high:.2f}")


parser = ArgumentParser(description=__doc__)
parser.add_argument("weights", type=Path, help="safetensors file written by sightline train_fusion")
parser.add_argument("views", type=Path, help="HDF5 file written by sightline pack_views, which the model learnt from")
parser.add_argument("output", type=Path, help="folder for figures and episodes.gif")
parser.add_argument("--processes", type=int, metavar="N", help="rollouts at a time (default: one per CPU)")

if __name__ == "__main__":
    run_stage(parser, Params, main)
