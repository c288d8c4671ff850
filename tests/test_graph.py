"""A recorded step gives what the network gives, whatever windows and conditions take turns; compiled parts too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="needs the 'model' extra")
pytest.importorskip("diffusers", reason="needs the 'model' extra")

from animx.model.conditions import Conditions, Inputs  # noqa: E402
from animx.model.config import UNetConfig  # noqa: E402
from animx.model.fused import FusedUNet  # noqa: E402
from animx.model.graph import WARM_UP, RecordCuda, Recorded  # noqa: E402
from animx.model.temporal import Temporal  # noqa: E402
from animx.model.unet import AnimateXUNet  # noqa: E402
from tests.small_unet import random_inputs, randomised  # noqa: E402

LATENT = (4, 4)
LEAST = UNetConfig(
    width=32, multipliers=(1,), attention_levels=(0,), res_blocks=1, head_dim=16, stem_heads=2, context_dim=64,
    keypoint_heads=4, keypoint_ff=32, keypoint_layers=1, resampler_depth=1, resampler_heads=2, resampler_head_dim=16,
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class FakeRecord:
    """Records as a device does: what is replayed reads and writes the memory of the recording, nothing else."""

    def __init__(self) -> None:
        self.recordings = self.replays = 0

    def __call__(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self.recordings += 1
        out = torch.full_like(work(), float("nan"))  # a recording computes nothing

        def replay() -> None:
            self.replays += 1
            out.copy_(work())

        return replay, out


@pytest.fixture(scope="module")
def unet() -> AnimateXUNet:
    return randomised(AnimateXUNet.build(LEAST, text_length=7)).requires_grad_(False)


def conditions(unet: AnimateXUNet, frames: int, seed: int) -> Conditions:
    given = random_inputs(frames, torch.float32, seed, latent=LATENT, size=(32, 32)) if seed else Inputs()
    with torch.no_grad():
        return unet.encode(given, frames=frames, latent=LATENT)


def latents(frames: int, seed: int) -> Any:
    return torch.randn(1, 4, frames, *LATENT, generator=torch.Generator().manual_seed(seed))


def test_a_replay_sees_the_latents_timestep_and_conditions_of_its_call(unet: AnimateXUNet) -> None:
    record = FakeRecord()
    network = FusedUNet(unet)
    recorded = Recorded(network, record)
    rows, times = [conditions(unet, 2, seed) for seed in (0, 1, 2)], unet.times([991, 496, 1])
    kept = []
    for seed, (t, row) in enumerate([(991, 1), (991, 0), (496, 1), (496, 0), (1, 2), (1, 2)]):
        x, step = latents(2, seed), torch.tensor([t])
        found = recorded(x, step, rows[row], times)
        assert torch.equal(found, network(x, step, rows[row], times))
        kept.append((found, found.clone()))
    assert record.recordings == 1
    assert record.replays == 6
    # A result stays the caller's: later passes do not write into it.
    assert all(torch.equal(one, before) for one, before in kept)


def test_another_schedule_is_taken_over(unet: AnimateXUNet) -> None:
    recorded = Recorded(unet, FakeRecord())
    row = conditions(unet, 2, 1)
    with torch.no_grad():
        for times in (unet.times([991, 1]), unet.times([981, 21])):
            step = torch.tensor([int(times.position.argmax())])
            assert torch.equal(recorded(latents(2, 0), step, row, times), unet(latents(2, 0), step, row, times))


def test_every_shape_has_a_recording_of_its_own(unet: AnimateXUNet) -> None:
    record = FakeRecord()
    recorded = Recorded(FusedUNet(unet), record)
    times = unet.times([991, 1])
    for frames in (2, 3, 2, 3):
        recorded(latents(frames, 0), torch.tensor([1]), conditions(unet, frames, 1), times)
    both = Conditions.stack([conditions(unet, 2, 1), conditions(unet, 2, 0)])
    recorded(latents(2, 0).expand(2, -1, -1, -1, -1), torch.tensor([1, 1]), both, times)
    assert record.recordings == 3


def test_recordings_are_made_on_the_device_of_the_latents(unet: AnimateXUNet, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream is made on the current device, which need not be that of the network."""
    where: list[Any] = []

    @contextmanager
    def device_of(x: Any) -> Iterator[None]:
        where.append(x.shape)
        yield
        where.append("left")

    class Noting(FakeRecord):
        def __call__(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
            where.append("recorded")
            return super().__call__(work)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    row = conditions(unet, 2, 1)
    Recorded(FusedUNet(unet), Noting())(latents(2, 0), torch.tensor([1]), row, unet.times([991, 1]))
    assert where == [latents(2, 0).shape, "recorded", "left"]


def test_recordings_share_their_memory_and_bear_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def graph(graph: Any, **given: Any) -> Any:
        asked.append(given)
        return nullcontext()

    def new_graph() -> Any:
        return SimpleNamespace(replay=lambda: None, pool=lambda: f"pool {len(asked)}")

    streams = [SimpleNamespace(wait_stream=lambda other: None) for _ in range(3)]
    for name, fake in {
        "Stream": iter(streams[1:]).__next__, "current_stream": lambda: streams[0], "stream": nullcontext,
        "CUDAGraph": new_graph, "graph": graph,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, fake)
    record, runs = RecordCuda(), []
    for _ in range(2):
        record(lambda: runs.append(1) or latents(1, 0))  # type: ignore[func-returns-value]
    assert len(runs) == 2 * (WARM_UP + 1)
    assert [one["pool"] for one in asked] == [None, "pool 1"]
    assert [one["stream"] for one in asked] == streams[1:]
    # While one thread records the step of a new window, another decodes the last segment and allocates.
    assert {one["capture_error_mode"] for one in asked} == {"thread_local"}


@pytest.mark.gpu
def test_a_cuda_graph_of_the_fused_network_gives_its_bytes() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    unet = randomised(AnimateXUNet.build(replace(LEAST, head_dim=32), text_length=7)).requires_grad_(False).cuda()
    network = FusedUNet(unet)
    recorded = Recorded(network)
    times = unet.times([991, 496, 1])
    sizes = (2, 3)  # recordings of two shapes take turns on shared memory
    with torch.no_grad():
        rows = [
            unet.encode(
                random_inputs(n, torch.float32, seed, latent=LATENT, size=(32, 32)).to("cuda"), frames=n, latent=LATENT
            )
            for seed in (1, 2)
            for n in sizes
        ]
    for seed, t in enumerate((991, 496, 1)):
        for i, row in enumerate(rows):
            x, step = latents(sizes[i % 2], seed).cuda(), torch.tensor([t], device="cuda")
            assert torch.equal(recorded(x, step, row, times), network(x, step, row, times))


@pytest.mark.long
def test_compiled_parts_give_the_same_and_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.utils import counters

    from animx.model.compiled import compile_parts

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    x, t = latents(2, 0), torch.tensor([1])
    results = []
    for _ in range(2):
        torch._dynamo.reset()
        counters.clear()
        unet = randomised(AnimateXUNet.build(LEAST, text_length=7)).requires_grad_(False)
        row = conditions(unet, 2, 1)
        with torch.no_grad():
            plain = unet(x, t, row)
            results.append(compile_parts(unet, (Temporal,))(x, t, row))  # one kind: a compiler takes seconds
        assert (results[-1] - plain).abs().max() <= 1e-5 * plain.abs().max()
        hits, misses = (counters["inductor"][f"fxgraph_cache_{what}"] for what in ("hit", "miss"))
        assert hits + misses > 0  # something was compiled
    assert (hits > 0, misses) == (True, 0)
    assert any(tmp_path.iterdir())
    assert torch.equal(results[0], results[1])
