"""The packaged demo model and demo sequences."""
