"""Collect and identify: mixed batches, their routing, the risk table and the unsafe experts. Nothing is trained.

The run is kept in OUTPUT_DIR/run; the training scripts go on from there when given the same directory.
"""

from __future__ import annotations

from run_arguments import in_one_line, parser_of, run_config

TOP = 20


def main() -> None:
    """Run the first two stages and print the top experts."""
    arguments = parser_of(__doc__ or "", "runs/demo").parse_args()
    with in_one_line():
        from steermoe.cli.display import overview
        from steermoe.pipeline import run_pipeline
        from steermoe.reporter import Reporter, plain_stdout

        config = run_config(arguments)
        reporter = Reporter(quiet=arguments.quiet)
        run_pipeline(config, only="collect", reporter=reporter)
        run = run_pipeline(config, only="identify", reporter=reporter)
        plain_stdout().print(overview(run, TOP))
        print(f"the run is in {run.path}")


if __name__ == "__main__":
    main()
