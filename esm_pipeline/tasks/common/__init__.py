"""What several tasks share: sequences in, batches computed, files out."""
