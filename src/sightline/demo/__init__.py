"""The demo recording: two simulated arms at a table, seen by ray-cast cameras.

``simulate`` decides what happens (`scene`, `control`, physics) and writes states; ``render`` decides how it looks
(`appearance`, `camera`) and writes pictures from those states. They meet only in the file that `states` owns.
"""
