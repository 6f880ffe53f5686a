"""HSNet's parts and the whole model on the CPU: ``python -m benchmarks.few_shot_segmentation``.

Layers: the learner's 4-D convolutions against the formulation of the reference code, at the sizes of the chosen side,
both in PyTorch. Frames: the whole forward of HSNet-HM and HSNet-FM in PyTorch against the two graphs that are exported
of it; a frame pays for ``query`` only, and that graph is checked to be the same for both maskings. Contenders take
turns, and their results are compared first.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.report import report
from edgevis import EdgevisError, models
from edgevis.layers import CenterPivotConv4d
from edgevis.models.hsnet import SIDE, HSNet
from export import compilers
from export.onnx import onnx_from_module
from runtime import backends
from runtime.bundle.engine_files import read_engine
from runtime.bundle.spec import Deployment
from runtime.common.arrays import Array
from runtime.common.command import run_command
from runtime.errors import MissingDependencyError
from runtime.parity.latency import Latency, interleaved
from runtime.sessions.session import Session

HEADERS = ("part", "runs in", "p50 ms", "p90 ms", "times faster")
# Stage of the backbone, then inputs, outputs, kernel and support stride of its squeezing blocks; the mixing blocks'.
_LAYERS = {
    4: ((3, 16, 3, 2), (16, 64, 3, 2), (64, 128, 3, 2)),
    3: ((6, 16, 5, 4), (16, 64, 3, 2), (64, 128, 3, 2)),
    2: ((4, 16, 5, 4), (16, 64, 5, 4), (64, 128, 3, 2)),
}
_MIX = (128, 128, 3, 1)
_ENGINES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}


@dataclass(frozen=True, slots=True)
class Speed:
    """The speed of one part in one engine: a row of the table.

    Attributes:
        part: The graph or computation that ran.
        engine: The engine that ran it.
        p50_ms, p90_ms: Quantiles of one run, batch 1, one shot.
        rounds: The number of runs.
        compared_with: The row that ``ratio`` compares with; None for such a row itself.
        ratio: The speed-up of this one over that, by the medians.
        threads: PyTorch's, and each engine's.
        side: Of the images.
    """

    part: str
    engine: str
    p50_ms: float
    p90_ms: float
    rounds: int
    compared_with: str | None
    ratio: float | None
    threads: int
    side: int


def reference_conv4d(convolution: CenterPivotConv4d) -> Callable[[Tensor], Tensor]:
    """The layer as the reference code computes it: (B, C, ha, wa, hb, wb) -> (B, O, ha, wa, hb', wb').

    The support places that stay are picked by index; each convolution's tensor is laid out anew with the other grid in
    the batch, and its result is laid out back.
    """
    stride, padding = convolution.support_stride, convolution.query.padding
    query, support = (
        (layer.weight.detach().clone(memory_format=torch.contiguous_format), layer.bias)
        for layer in (convolution.query, convolution.support)
    )

    def forward(x: Tensor) -> Tensor:
        batch, channels, ha, wa, hb, wb = x.shape
        strided = x
        if stride > 1:
            strided = x.index_select(4, torch.arange(0, hb, stride)).index_select(5, torch.arange(0, wb, stride))
        hk, wk = strided.shape[4:]
        over_query = strided.permute(0, 4, 5, 1, 2, 3).contiguous().view(-1, channels, ha, wa)
        over_query = functional.conv2d(over_query, *query, padding=padding)
        over_query = over_query.view(batch, hk, wk, -1, ha, wa).permute(0, 3, 4, 5, 1, 2).contiguous()
        over_support = x.permute(0, 2, 3, 1, 4, 5).contiguous().view(-1, channels, hb, wb)
        over_support = functional.conv2d(over_support, *support, stride=stride, padding=padding)
        over_support = over_support.view(batch, ha, wa, -1, hk, wk).permute(0, 3, 1, 2, 4, 5).contiguous()
        return over_query + over_support

    return forward


def layers(side: int, *, seconds: float, rounds: int) -> list[Speed]:
    """Two rows for each distinct 4-D convolution; EdgevisError when the two formulations differ."""
    rows: list[Speed] = []
    for name, sizes, places, support in _layer_sizes(side):
        torch.manual_seed(0)
        ours = CenterPivotConv4d(*sizes)
        reference = reference_conv4d(ours)
        x = torch.randn(1, sizes[0], places, places, support, support)
        with torch.no_grad():
            _agree(name, {"ours": ours(x).numpy()}, reference(x).numpy())
            times = interleaved(
                {f"{name}, reference": partial(reference, x), f"{name}, ours": partial(ours, x)},
                seconds=seconds,
                min_rounds=rounds,
            )
        rows += _rows(times, {f"{name}, {kind}": "PyTorch" for kind in ("reference", "ours")}, side)
    return rows


def frames(side: int, *, width: int, seconds: float, rounds: int) -> list[Speed]:
    """The whole forward in PyTorch, the query graph per engine, and the support graphs of both maskings.

    EdgevisError when an engine's logits are not PyTorch's, or when the query graph depends on the masking.
    """
    torch.manual_seed(0)
    modules = {masking: _model(masking, side, width) for masking in ("hm", "fm")}
    modules["fm"].load_state_dict(modules["hm"].state_dict())
    query, support = torch.randn(2, 1, 3, side, side)
    mask = torch.zeros(1, side, side)
    mask[:, side // 4 : side * 3 // 4, side // 3 : side * 2 // 3] = 1
    engines = {name: shown for name, shown in _ENGINES.items() if _installed(name)}
    calls: dict[str, Callable[[], object]] = {}
    runs_in: dict[str, str] = {}

    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        sessions = _sessions(modules, tuple(engines), Path(folder))
        resident = [x.numpy() for x in modules["hm"].support(support, mask)]
        names = [tensor.name for tensor in models.entry("hsnet").deployment.graph("query").inputs[1:]]
        shots = dict(zip(names, resident, strict=True))
        frame = {"image": query.numpy()}
        residents = {name: sessions["query", name].prepare(shots) for name in engines}
        _agree(
            "query",
            {name: sessions["query", name].run(frame, residents[name])["logits"][:, 0] for name in engines},
            modules["hm"](query, support, mask).numpy(),
        )

        def add(part: str, engine: str, call: Callable[[], object]) -> None:
            calls[f"{part}, {engine}"] = call
            runs_in[f"{part}, {engine}"] = engine

        add("whole forward HM", "PyTorch", partial(modules["hm"], query, support, mask))
        add("whole forward FM", "PyTorch", partial(modules["fm"], query, support, mask))
        add("a frame: query", "PyTorch", partial(modules["hm"].query, query, *map(torch.from_numpy, resident)))
        for name, shown in engines.items():
            add("a frame: query", shown, partial(sessions["query", name].run, frame, residents[name]))
        shot = {"image": support.numpy(), "mask": mask.numpy()}
        for masking in modules:
            for name, shown in engines.items():
                add(f"a shot, once: support {masking.upper()}", shown, partial(sessions[masking, name].run, shot))
        times = interleaved(calls, seconds=seconds, min_rounds=rounds)
        for session in sessions.values():
            session.close()
    return _rows(times, runs_in, side)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and, with ``--output``, save."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.few_shot_segmentation", description=__doc__)
    parser.add_argument("--side", type=int, default=SIDE, help=f"of the images, 32 k + 1 (default: {SIDE})")
    parser.add_argument("--seconds", type=float, default=60.0, help="for all frames together (default: 60)")
    parser.add_argument("--quick", action="store_true", help="small images, a narrow backbone: does it work")
    parser.add_argument(
        "--output", metavar="DIR", type=Path, help="also write few_shot_segmentation.md and .json there"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    side, width, seconds, rounds = (65, 8, 0.0, 2) if arguments.quick else (arguments.side, 64, arguments.seconds, 3)
    return report(
        lambda: [
            *layers(side, seconds=seconds / 60, rounds=rounds),
            *frames(side, width=width, seconds=seconds, rounds=rounds),
        ],
        headers=HEADERS,
        cells=_cells,
        as_json=arguments.json,
        title=_title,
        files=arguments.output and arguments.output / "few_shot_segmentation",
    )


def _title(first: Speed) -> str:
    return (
        f"HSNet, images of {first.side} x {first.side}, one shot, {first.threads} thread(s); rows without a number in "
        "the last column are what those below them are compared with"
    )


def _cells(item: Speed) -> tuple[str, ...]:
    ratio = "" if item.ratio is None else f"{item.ratio:.2f}"
    return (item.part, item.engine, f"{item.p50_ms:.1f}", f"{item.p90_ms:.1f}", ratio)


def _rows(times: Mapping[str, Latency], runs_in: Mapping[str, str], side: int) -> list[Speed]:
    """The rows of the timings; ratios are relative to the first contender."""
    first = next(iter(times))
    return [
        Speed(
            part=name.removesuffix(f", {runs_in[name]}"),
            engine=runs_in[name],
            p50_ms=latency.p50_ms,
            p90_ms=latency.p90_ms,
            rounds=latency.rounds,
            compared_with=None if name == first else first,
            ratio=None if name == first else times[first].p50_ms / latency.p50_ms,
            threads=torch.get_num_threads(),
            side=side,
        )
        for name, latency in times.items()
    ]


def _layer_sizes(side: int) -> list[tuple[str, tuple[int, int, int, int], int, int]]:
    """Name, sizes, side of the query grid and of the support grid of each distinct 4-D convolution."""
    layer_sizes = []
    for stage, blocks in _LAYERS.items():
        places = support = (side - 1) // 2 ** (stage + 1) + 1
        for index, sizes in enumerate(blocks, start=1):
            layer_sizes.append((f"squeeze {stage}.{index}", sizes, places, support))
            support = -(-support // sizes[3])
        if stage != 4:
            layer_sizes.append((f"mix {stage + 1} to {stage}", _MIX, places, support))
    return layer_sizes


def _model(masking: str, side: int, width: int) -> HSNet:
    model = models.create(f"hsnet-{masking}", side=side, width=width)
    assert isinstance(model, HSNet)  # noqa: S101 - narrows the type only
    return model


def _installed(backend: str) -> bool:
    try:
        backends.load(backend).devices()
    except MissingDependencyError:
        return False
    return True


def _sessions(modules: Mapping[str, HSNet], engines: Sequence[str], folder: Path) -> dict[tuple[str, str], Session]:
    """The query graph and each masking's support graph, by name and engine."""
    deployment = models.deployment_of(models.entry("hsnet"), modules["hm"])
    queries = [onnx_from_module(model, deployment.graph("query")) for model in modules.values()]
    if queries[0].SerializeToString() != queries[1].SerializeToString():
        raise EdgevisError("the query graphs of HM and FM differ; masking must be a matter of the support graph alone")
    sessions = {}
    exported = {"query": queries[0]}
    exported |= {name: onnx_from_module(model, deployment.graph("support")) for name, model in modules.items()}
    for name, model in exported.items():
        graph = "query" if name == "query" else "support"
        bundle = folder / name
        path = compilers.graph_path(bundle, graph)
        path.parent.mkdir(parents=True)
        onnx.save(model, path)
        for engine in engines:
            sessions[name, engine] = _session(model, deployment, graph, engine, bundle)
    return sessions


def _session(model: onnx.ModelProto, deployment: Deployment, graph: str, engine: str, bundle: Path) -> Session:
    path = compilers.load(engine).engine_from_onnx(model, graph=graph, precision="fp32", bundle=bundle)
    opened = backends.load(engine).open_engine(
        read_engine(path), precision="fp32", device="cpu", threads=torch.get_num_threads()
    )
    return Session(opened, deployment.graph(graph), max_batch=deployment.max_batch)


def _agree(what: str, outputs: Mapping[str, Array], expected: Array) -> None:
    for name, array in outputs.items():
        off = float(np.abs(array - expected).max() / np.abs(expected).max())
        if not off < 1e-3:
            raise EdgevisError(f"{what}: {name} is off by {off:.1e}, relative")


if __name__ == "__main__":
    sys.exit(run_command(main))
