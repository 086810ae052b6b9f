"""A whole run: inputs dealt into bundles, results gathered, counted and described."""
