"""What was measured, line by line in files: journals of searches under way, and sweeps to replay searches on."""
