"""Aligning and rescaling in one pass gives what the two operations give one after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skeletons import arrays, dancing, random_arrays, standing

from animx.retarget import groups, ops
from animx.retarget.align import align_points, measure
from animx.retarget.fused import align_and_rescale

ONES = np.ones(len(groups.UNITS))
some_groups = st.dictionaries(st.sampled_from(sorted(groups.GROUPS)), st.floats(0.2, 3.0), max_size=5)


def one_after_the_other(points, visible, target, factors, keep, before):
    times = np.arange(len(points)) / 25
    moved = np.asarray(points, np.float64)
    if target is not None:
        moved = np.empty_like(moved)
        align_points(points, visible, times, target, before, 1.3, moved)
    out = np.empty_like(moved)
    ops.rescale_points(moved, visible, times, factors, before, keep, out)
    return out


@settings(max_examples=60, deadline=None)
@given(random_arrays(), st.integers(0, 99), some_groups, some_groups, st.sampled_from(ops.KEEPS), st.booleans())
def test_one_pass_equals_align_and_then_rescale(driver, seed, factors, past, keep, aligned):
    points, visible = driver
    target = measure(*arrays(seed, 3, 0.1, 0.1), ONES) if aligned else None
    stretch, before = groups.unit_factors(factors), groups.unit_factors(past)
    expected = one_after_the_other(points, visible, target, stretch, keep, before)
    times = np.arange(len(points)) / 25
    found = align_and_rescale(points, visible, times, target, stretch, keep, before=before, fallback=1.3)
    size = max(1.0, np.abs(expected[visible]).max(initial=0))
    np.testing.assert_allclose(found[visible], expected[visible], rtol=0, atol=1e-9 * size)


@pytest.mark.parametrize("frames", [1, 32, 200])
def test_the_length_of_the_clip_does_not_matter(frames):
    poses, goal = dancing(frames), standing()
    points, visible = poses.keypoints[:, 0], poses.scores[:, 0] > 0
    target = measure(goal.keypoints[:, 0], goal.scores[:, 0] > 0, ONES)
    stretch = groups.unit_factors({"legs": 0.5, "head": 2.0})
    expected = one_after_the_other(points, visible, target, stretch, "ground", ONES)
    found = align_and_rescale(points, visible, np.arange(frames) / 25, target, stretch, before=ONES)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)
