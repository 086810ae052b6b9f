"""Find, check, read and write checkpoints."""
