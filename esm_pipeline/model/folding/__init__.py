"""ESMFold: folding trunk, structure module, confidences."""
