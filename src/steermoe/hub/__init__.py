"""A hardened model as a repository of the model hub: prepared on disk, and pushed when told to."""
