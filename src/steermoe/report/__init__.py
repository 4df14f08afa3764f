"""The page that tells the whole story of a run."""
