"""The puppet engine: a cut-out of the reference picture, deformed by the retargeted pose.  CPU, no downloads."""
