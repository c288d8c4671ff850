"""Draw every file of this folder again: the characters, the dance clip with its beat, and its true poses.

    python examples/make.py [FOLDER]        # default: this folder; about two minutes

Everything is drawn and played by code (`animx_trainer.synthetic`), so it may be used for anything, and it can be shown
that nothing else is in it: the same command gives the same pictures.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from animx.canvas import Canvas
from animx.pose.formats import write_poses
from animx.pose.sequence import PoseSequence
from animx_trainer import synthetic

CANVAS = Canvas(512, 768)
FPS = Fraction(24)
FRAMES = 120
SAMPLE_RATE = 44100
CHARACTERS = {"bottle": ("bottle", 0), "ghost": ("ghost", 0), "bear": ("bear", 0), "mushroom": ("mushroom", 0)}
"""File name -> kind and seed."""


def picture(name: str) -> NDArray[np.uint8]:
    """The example character `name`: RGB [768, 512, 3]."""
    who = synthetic.character(*CHARACTERS[name])
    return synthetic.draw_character(who, synthetic.rest_pose(who, CANVAS), CANVAS)[0]


def frames() -> Iterator[NDArray[np.uint8]]:
    """The frames of the dance: RGB [768, 512, 3], a little soft, as a camera would see them."""
    who, moving = synthetic.character("human"), synthetic.dance("show")
    for rgb, _ in synthetic.draw_clip(who, moving, CANVAS, FRAMES, fps=FPS):
        yield np.asarray(cv2.GaussianBlur(rgb, (0, 0), 0.7), np.uint8)


def poses() -> PoseSequence:
    """The true joints of the dance, for machines without a pose detector."""
    return synthetic.true_poses(synthetic.character("human"), synthetic.dance("show"), CANVAS, FRAMES, fps=FPS)


def beat() -> NDArray[np.float32]:
    """A beat for the dance: drum, hi-hat and a walking bass, float32 [1, samples] in -1..1."""
    bpm = synthetic.dance("show").bpm
    length = int(SAMPLE_RATE * FRAMES / FPS)
    sound = np.zeros(length + SAMPLE_RATE)
    step = SAMPLE_RATE * 60 / bpm
    noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE // 8)

    def add(at: float, wave: NDArray[np.float64], gain: float) -> None:
        first = int(at)
        sound[first : first + len(wave)] += gain * wave

    t = np.arange(SAMPLE_RATE // 3) / SAMPLE_RATE
    drum = np.sin(2 * np.pi * (48 * t + 9 * (1 - np.exp(-28 * t)))) * np.exp(-11 * t)
    hat = noise * np.exp(-np.arange(len(noise)) / (0.012 * SAMPLE_RATE))
    snare = noise * np.exp(-np.arange(len(noise)) / (0.05 * SAMPLE_RATE))
    for i in range(12):
        add(i * step, drum, 0.55)
        add((i + 0.5) * step, hat, 0.07)
        if i % 2:
            add(i * step, snare, 0.12)
        for half, semitone in enumerate((0, 7) if i % 4 < 2 else (5, 3)):
            pitch = 110 * 2 ** (semitone / 12)
            tone = np.tanh(2 * np.sin(2 * np.pi * pitch * t)) * np.exp(-7 * t) * np.minimum(1, t * 200)
            add((i + half / 2) * step, tone, 0.16)
    sound = sound[:length]
    return np.asarray(sound / max(1.0, float(np.abs(sound).max()) / 0.9), np.float32)[None]


def write_clip(path: Path) -> None:
    """The dance with its beat as mp4: H.264 and AAC."""
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as out:
        video = out.add_stream("libx264", rate=FPS, options={"crf": "22", "preset": "slow", "threads": "1"})
        video.width, video.height, video.pix_fmt = CANVAS.width, CANVAS.height, "yuv420p"
        audio = out.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
        audio.bit_rate = 64000
        for rgb in frames():
            out.mux(video.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
        out.mux(video.encode())
        sound = av.AudioFrame.from_ndarray(beat(), format="fltp", layout="mono")
        sound.sample_rate = SAMPLE_RATE
        out.mux(audio.encode(sound))
        out.mux(audio.encode())


def main(folder: Path) -> None:
    """Write all examples into `folder`."""
    (folder / "characters").mkdir(parents=True, exist_ok=True)
    for name in CHARACTERS:
        path = folder / "characters" / f"{name}.png"
        cv2.imwrite(str(path), np.ascontiguousarray(picture(name)[..., ::-1]), [cv2.IMWRITE_PNG_COMPRESSION, 9])
        print(path)
    write_clip(folder / "dance.mp4")
    print(folder / "dance.mp4")
    write_poses(poses(), folder / "dance.pose.npz", overwrite=True)
    print(folder / "dance.pose.npz")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
