"""From recordings to features, and from the model's outputs to words and their error rate."""
