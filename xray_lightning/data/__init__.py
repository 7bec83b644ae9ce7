"""From a source to batches: manifest, split, cache, transforms."""
