"""What a run costs: arithmetic and memory, from a model's shape alone."""
