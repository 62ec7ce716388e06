"""The commands: each parses its command line and calls into pipeline once."""
