"""The command line: one file a command or a thing that is printed."""
