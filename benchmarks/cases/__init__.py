"""Files, templates, checkpoints and settings that people really have: what becomes of each, as a table."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tests"))  # the tiny checkpoints of the tests
