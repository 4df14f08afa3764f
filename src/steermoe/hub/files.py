"""What the files of a repository are called."""

from __future__ import annotations

PROVENANCE = "provenance.json"
DELTA = "delta.safetensors"
CARD = "README.md"
LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "COPYING*")
"""Files of a base model that go where its weights go."""
