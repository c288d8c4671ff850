"""Poses: what a skeleton is, where poses come from, how they are written and drawn.  Dry: numpy and OpenCV only."""
