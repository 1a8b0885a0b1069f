"""The `faops` command line."""
