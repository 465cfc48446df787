"""The command line: one small file per command, each of which parses, calls and prints."""
