"""Training, and the procedural characters that feed it and the tests."""
