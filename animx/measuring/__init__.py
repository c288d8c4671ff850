"""Measurements of the full model and its operators: timed side by side, each behind a check of its results."""
