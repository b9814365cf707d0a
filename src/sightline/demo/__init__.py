"""The demo recording: two simulated arms at a table, seen by cameras.

``simulate`` decides what happens (`scene`, `control`, physics) and writes a file of states, whose format `states` owns;
``render`` reads it, decides how it looks (`appearance`, `camera`) and writes pictures, ray by ray (`tracing`,
`primitives`). `simulate.Simulation` and `render.EpisodeCameras` are both in closed loop, for a policy to act in.
"""
