"""Whether a model can still do what it could: items with one right answer, and how they are scored."""
