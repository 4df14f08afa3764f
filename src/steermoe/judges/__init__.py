"""From a reply to a verdict: one file a judge."""
