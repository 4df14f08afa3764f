"""Every setting of a run.

Settings are layered, the later winning: the defaults, the preset of the embedded model where that is
the model, the `--config` file, then `--set` and the command's own options.
"""

from steermoe.config.judge import JudgeSection
from steermoe.config.layers import fields_of, load_config, preset, validate
from steermoe.config.old_names import Values
from steermoe.config.section import Section, expand_home
from steermoe.config.sections import (
    BUILTIN_PROMPTS,
    EMBEDDED_MODEL,
    Config,
    IdentifySection,
    ModelSection,
)
from steermoe.config.train import (
    DEFAULT_REFUSALS,
    ArgumentsSection,
    PhaseSettings,
    TrainSection,
)

__all__ = [
    "BUILTIN_PROMPTS",
    "DEFAULT_REFUSALS",
    "EMBEDDED_MODEL",
    "ArgumentsSection",
    "Config",
    "IdentifySection",
    "JudgeSection",
    "ModelSection",
    "PhaseSettings",
    "Section",
    "TrainSection",
    "Values",
    "expand_home",
    "fields_of",
    "load_config",
    "preset",
    "validate",
]
