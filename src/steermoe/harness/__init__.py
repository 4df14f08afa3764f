"""lm-evaluation-harness and Inspect: their tasks run on our models, and our prompts as tasks of theirs."""
