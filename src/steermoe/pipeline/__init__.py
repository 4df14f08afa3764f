"""The steps in order, what each reads, and how an interrupted run goes on."""

from steermoe.pipeline.run import run_pipeline

__all__ = ["run_pipeline"]
