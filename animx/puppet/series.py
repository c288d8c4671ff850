"""Small laws of time series that the motion step is made of.  All windows are in seconds, so the frame rate is free."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Series = NDArray[np.float64]
Flags = NDArray[np.bool_]


def filled(values: Series, seen: Flags, times: Series) -> Series:
    """`values` [T, ...] with unseen frames interpolated in time and held at the ends; all zeros when never seen."""
    if seen.all():
        return values
    flat = values.reshape(len(values), -1)
    if not seen.any():
        return np.zeros_like(values)
    columns = [np.interp(times, times[seen], column[seen]) for column in flat.T]
    return np.stack(columns, 1).reshape(values.shape)


def upper_percentile(values: Series, percent: float) -> float:
    """The smallest value that `percent` of the values do not exceed; repeating every value changes nothing."""
    return float(np.percentile(values, percent, method="inverted_cdf"))


def running_percentile(values: Series, times: Series, reach: float, percent: float) -> Series:
    """Percentile over the frames within `reach` seconds of each frame, then a mean over the same window."""
    first = np.searchsorted(times, times - reach, "left")
    last = np.searchsorted(times, times + reach, "right")
    top = np.array([upper_percentile(values[a:b], percent) for a, b in zip(first, last, strict=True)])
    total = np.concatenate([[0.0], np.cumsum(top)])
    return np.asarray((total[last] - total[first]) / (last - first), np.float64)


def directions(vectors: Series, full: float, times: Series, window: float = 0.12) -> Series:
    """Angle of each vector [T] (atan2).  One shorter than a quarter of `full` points nowhere surely: it leans on its
    neighbours in time, weighted by their length."""
    length = np.linalg.norm(vectors, axis=1)
    angle = np.arctan2(vectors[:, 1], vectors[:, 0])
    trust = np.clip((length / max(full, 1e-9) - 0.1) / 0.15, 0.0, 1.0)
    for t in np.flatnonzero(trust < 1.0):
        a, b = np.searchsorted(times, [times[t] - 3 * window, times[t] + 3 * window])
        weight = np.exp(-0.5 * ((times[a:b] - times[t]) / window) ** 2)
        mean = (vectors[a:b] * weight[:, None]).sum(0) / weight.sum()
        mixed = trust[t] * vectors[t] / max(length[t], 1e-9) + (1 - trust[t]) * mean / max(full, 1e-9)
        if float(np.hypot(*mixed)) > 1e-9:
            angle[t] = np.arctan2(mixed[1], mixed[0])
    return np.asarray(angle, np.float64)


def wrapped(angle: Series) -> Series:
    """Angles brought into (-pi, pi]."""
    return np.asarray(np.pi - np.mod(np.pi - angle, 2 * np.pi), np.float64)


def circular_median(angle: Series) -> float:
    """The median of angles about their mean direction."""
    middle = float(np.arctan2(np.sin(angle).mean(), np.cos(angle).mean()))
    return middle + float(np.median(wrapped(angle - middle)))


def bounded(angle: Series, centre: Series | float, limit: float = 1.2 * np.pi) -> Series:
    """Follow an angle [T] without jumps, but never farther than `limit` from `centre`: a limb may swing past, not wind
    up."""
    relative = wrapped(np.asarray(angle - centre, np.float64))
    result = relative.copy()
    for t in range(1, len(result)):
        step = relative[t] - result[t - 1]
        value = result[t - 1] + (np.pi - np.mod(np.pi - step, 2 * np.pi))
        result[t] = value if abs(value) <= limit else relative[t]
    return np.asarray(result + centre, np.float64)


def hysteresis(values: Series, on: float, off: float, start: bool = False) -> Flags:
    """True from the first value above `on` until one below `off` (`off` < `on`)."""
    state, states = start, np.zeros(len(values), bool)
    for t, value in enumerate(values):
        state = value > off if state else value > on
        states[t] = state
    return states


def soft_threshold(values: Series, level: float) -> Series:
    """`values` with everything below half of `level` muted to 0 and above one and a half untouched, smooth between."""
    t = np.clip((np.abs(values) / max(level, 1e-9) - 0.5), 0.0, 1.0)
    return np.asarray(values * t * t * (3 - 2 * t), np.float64)
