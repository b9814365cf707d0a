"""What every reader of a recording needs: its layout, table of frames, split and images."""
