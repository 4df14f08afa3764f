"""The embedded model: where it is kept, what it is made of, and how."""
