"""What a recording is: layout, reader, validation, episode split, demo simulator."""
