"""A whole run: inputs cut into shards, results gathered, counted and described."""
