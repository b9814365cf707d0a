"""Trained policies drive the simulated robot: where the fusion branch and the demo's simulator meet."""
