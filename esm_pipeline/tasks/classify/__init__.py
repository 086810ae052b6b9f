"""Classes of sequences or residues, by a fine-tuned model."""
