"""Distils ``osnet-x0-25`` from published OSNet weights, on person pictures that may be used freely.

    python -m edgevis.training.distill --teacher osnet_x0_25_msmt17.safetensors --photos ccp_dev.zip \
        --video one-by-one-person-detection.mp4 --output osnet-x0-25.safetensors

The student starts from random weights and never receives one of the teacher's. Both see the same augmented view.
First each block learns alone: it is given the teacher's input of that block and learns the teacher's output (blockwise
distillation; a random network of this depth learns almost nothing through all its layers in an hour on a CPU). Then
the student runs on its own, and learns the same maps and the teacher's embedding: its direction, its direction seen
from the batch's mean, its values before the last ReLU, and the similarities of all pairs in the batch (relational
distillation: Park et al., CVPR 2019). Each term is the share that is left unexplained: about 1 at the start, 0 when
learned.

An interrupted run goes on from its checkpoint when started again with the same arguments, and sees the same views.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgevis import models
from edgevis.data.augment import camera_view
from edgevis.data.persons import Person, persons_from_ccp, persons_from_video
from edgevis.models.osnet import DEPLOYMENT, OSNet, osnet_x0_25
from edgevis.training.checkpoint import write_halved
from edgevis.training.finite import diverged, non_finite_state
from runtime.bundle.spec import Preprocess
from runtime.common.command import run_command
from runtime.common.files import atomic_write
from runtime.errors import InputError

VIEWS_HELD_OUT = 2
_PREFETCH = 4
# The scale of the batch norm that ends the stem and the transitions, or the two branches of a block, by its name in
# the block.
_LAST_SCALES = frozenset({"0.bn.weight", "bn.weight", "conv3.bn.weight", "downsample.bn.weight"})


def network_input(views: NDArray[np.uint8], preprocess: Preprocess) -> Tensor:
    """(N, h, w, 3) uint8 BGR of the input's own size -> (N, 3, h, w) float32 in channels-last memory.

    What ``runtime.images.preprocess`` makes of the same images, in one batch and without resizing.
    """
    pixels = torch.from_numpy(views)
    if preprocess.color == "RGB":
        pixels = pixels.flip(-1)
    values = pixels.to(torch.float32).mul_(preprocess.scale)
    values.sub_(torch.tensor(preprocess.mean)).div_(torch.tensor(preprocess.std))
    return values.permute(0, 3, 1, 2)


def batch_of_views(persons: Sequence[Person], *, seed: int, step: int, size: int) -> NDArray[np.uint8]:
    """The views of one training step, (size, 256, 128, 3) uint8 BGR; the same for the same seed and step."""
    rng = np.random.default_rng((seed, step))
    chosen = rng.permutation(len(persons))[:size] if size <= len(persons) else rng.integers(len(persons), size=size)
    return np.stack([camera_view(persons, int(index), rng) for index in chosen])


@dataclass(frozen=True, slots=True)
class Activations:
    """What a network makes of N images.

    Attributes:
        maps: (N, C, h, w) after the stem and after each block.
        values: (N, 512) float32, the embedding before its last ReLU.
    """

    maps: tuple[Tensor, ...]
    values: Tensor


def activations(model: OSNet, image: Tensor, *, bf16: bool, forced: Activations | None = None) -> Activations:
    """Run the network; with ``forced``, each block is given the map before it from there instead of the model's own."""
    maps: list[Tensor] = []
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        for index, block in enumerate(_blocks(model)):
            given = (maps if forced is None else forced.maps)[index - 1] if index else image
            maps.append(block(given))
    last = (maps if forced is None else forced.maps)[-1]
    return Activations(tuple(maps), model.fc[1](model.fc[0](last.float().mean((2, 3)))))


def distillation_loss(student: Activations, teacher: Activations) -> dict[str, Tensor]:
    """The terms of the loss by name; their sum is minimised."""
    found = functional.normalize(student.values.relu())
    wanted = functional.normalize(teacher.values.relu())
    mean = wanted.mean(0)
    pairs = wanted @ wanted.T
    maps = [_unexplained(s.float(), t.float()) for s, t in zip(student.maps, teacher.maps, strict=True)]
    return {
        "cosine": 1 - (found * wanted).sum(1).mean(),
        "centred": 1 - functional.cosine_similarity(found - mean, wanted - mean).mean(),
        "pairs": functional.mse_loss(found @ found.T, pairs) / pairs.var(),
        "values": _unexplained(student.values, teacher.values),
        "maps": torch.stack(maps).sum(),
    }


def _unexplained(found: Tensor, wanted: Tensor) -> Tensor:
    """Squared error over variance, per channel (axis 1), then the mean; channels that hardly vary count less."""
    axes = [axis for axis in range(wanted.ndim) if axis != 1]
    variance = wanted.var(axes)
    return ((found - wanted).square().mean(axes) / variance.clamp_min(0.1 * variance.mean().item())).mean()


def match_scales(student: OSNet, image: Tensor, teacher: Activations, *, bf16: bool) -> None:
    """Scale the last batch norms of each block so that its random output varies as much as the teacher's.

    Otherwise the first minutes go into shrinking them (initialisation from data: Mishkin, Matas, ICLR 2016).
    """
    with torch.no_grad():
        found = activations(student, image, bf16=bf16, forced=teacher)
        for block, s, t in zip(_blocks(student), found.maps, teacher.maps, strict=True):
            factor = t.float().std() / s.float().std()
            for name, parameter in block.named_parameters():
                if name in _LAST_SCALES:
                    parameter.mul_(factor)
        student.fc.get_parameter("1.weight").mul_(teacher.values.std() / found.values.std())


def agreement(student: OSNet, wanted: Tensor, views: NDArray[np.uint8]) -> dict[str, float]:
    """How the student follows the teacher, whose L2-normalised embeddings of ``views`` are ``wanted``.

    The two halves of ``views`` show the same persons in the same order.

    Returns ``cosine`` between both embeddings, and for each network ``rank1_*``: the share of the first half whose
    nearest neighbour in the second half is the same person.
    """
    student.eval()
    normalised = (_embed(student, views), wanted)
    rank1 = []
    for embedding in normalised:
        query, gallery = embedding.chunk(2)
        rank1.append(((query @ gallery.T).argmax(1) == torch.arange(len(query))).float().mean().item())
    cosine = (normalised[0] * normalised[1]).sum(1).mean().item()
    return {"cosine": cosine, "rank1_student": rank1[0], "rank1_teacher": rank1[1]}


def _embed(model: OSNet, views: NDArray[np.uint8]) -> Tensor:
    with torch.inference_mode():
        parts = [model.embed(network_input(part, DEPLOYMENT.preprocess)) for part in _chunks(views, 64)]
    return functional.normalize(torch.cat(parts))


def learning_rate(step: int, *, steps: int, peak: float, warm_up: int) -> float:
    """Linear warm-up, then half a cosine to zero."""
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * 0.5 * (1 + float(np.cos(np.pi * (step - warm_up) / max(1, steps - warm_up))))


def distill(args: argparse.Namespace) -> dict[str, float]:
    """Train, write the weights and return the held-out agreement of the last epoch."""
    torch.manual_seed(args.seed)
    teacher = _osnet()
    models.load_weights(teacher, args.teacher)
    teacher.requires_grad_(False)
    student = _osnet().train()

    started = time.monotonic()
    persons = persons_from_ccp(args.photos, split="train")
    photos = len(persons)
    persons += persons_from_video(args.video)
    held_out = persons_from_ccp(args.photos, split="val")
    rng = np.random.default_rng((args.seed, 1 << 31))
    order = [*range(len(held_out))] * VIEWS_HELD_OUT
    views = np.stack([camera_view(held_out, index, rng, same_clothes=True) for index in order])
    wanted_views = _embed(teacher, views)
    _say(
        f"{photos} persons in photos, {len(persons) - photos} in the video, {len(held_out)} held out; "
        f"read in {time.monotonic() - started:.0f} s"
    )

    steps = args.epochs * args.steps_per_epoch
    decayed = [parameter for parameter in student.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in student.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.peak_learning_rate)
    checkpoint = args.output.with_suffix(".checkpoint.pt") if args.checkpoint is None else args.checkpoint
    arguments = {name: str(value) for name, value in sorted(vars(args).items()) if name not in {"checkpoint", "output"}}
    epoch, spent_s = _resume(checkpoint, student, optimizer, arguments)

    started = time.monotonic() - spent_s
    result: dict[str, float] = {}
    batches = _batches(persons, args.seed, range(epoch * args.steps_per_epoch, steps), args.batch)
    while epoch < args.epochs:
        student.train()
        totals: dict[str, float] = {}
        for step in range(epoch * args.steps_per_epoch, (epoch + 1) * args.steps_per_epoch):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps=steps, peak=args.peak_learning_rate, warm_up=args.warm_up)
            image = network_input(next(batches), DEPLOYMENT.preprocess)
            with torch.no_grad():
                wanted = activations(teacher, image, bf16=args.bf16)
            if step == 0:
                match_scales(student, image, wanted, bf16=args.bf16)
            forced = wanted if step < args.blockwise * steps else None
            terms = distillation_loss(activations(student, image, bf16=args.bf16, forced=forced), wanted)
            loss = torch.stack(list(terms.values())).sum()
            if not bool(loss.isfinite()):
                said = non_finite_state({"model": student}, optimizer)
                where = f"epoch {epoch + 1}, step {step % args.steps_per_epoch + 1}"
                raise diverged(f"the loss is not finite in {where}", said, epoch=epoch)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(student.parameters(), 5.0)
            optimizer.step()
            for name, term in terms.items():
                totals[name] = totals.get(name, 0.0) + term.item() / args.steps_per_epoch
        if said := non_finite_state({"model": student}, optimizer):
            raise diverged(f"weights are not finite after epoch {epoch + 1}", said, epoch=epoch)
        epoch += 1
        result = {**agreement(student, wanted_views, views), "loss": sum(totals.values())}
        elapsed_s = time.monotonic() - started
        _write(checkpoint, student, optimizer, arguments, epoch, elapsed_s)
        terms_text = " ".join(f"{name} {value:.4f}" for name, value in totals.items())
        _say(
            f"epoch {epoch}/{args.epochs}  elapsed {elapsed_s / 60:.1f} min  "
            f"eta {elapsed_s / epoch * (args.epochs - epoch) / 60:.1f} min  loss {result['loss']:.4f} ({terms_text})  "
            f"held out: cosine {result['cosine']:.4f} rank-1 {result['rank1_student']:.3f} "
            f"(teacher {result['rank1_teacher']:.3f})"
        )
    result = result or agreement(student, wanted_views, views)
    write_halved(args.output, student.state_dict(), None)
    _say(f"wrote {args.output}, {args.output.stat().st_size} bytes")
    return result


def _osnet() -> OSNet:
    model = osnet_x0_25().eval()
    # torch 2.13's annotations leave out this overload.
    return model.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _blocks(model: OSNet) -> list[nn.Module]:
    stem = nn.Sequential(model.conv1, model.maxpool)
    return [stem, *model.conv2, *model.conv3, *model.conv4, model.conv5]


def _chunks(views: NDArray[np.uint8], size: int) -> Iterator[NDArray[np.uint8]]:
    for start in range(0, len(views), size):
        yield views[start : start + size]


def _batches(persons: Sequence[Person], seed: int, steps: range, size: int) -> Iterator[NDArray[np.uint8]]:
    """The batch of each step, made by one thread ahead of its use."""
    with ThreadPoolExecutor(1) as pool:
        ahead: list[Future[NDArray[np.uint8]]] = []
        for step in steps:
            ahead.append(pool.submit(batch_of_views, persons, seed=seed, step=step, size=size))
            if len(ahead) > _PREFETCH:
                yield ahead.pop(0).result()
        for future in ahead:
            yield future.result()


def _write(
    path: Path, model: OSNet, optimizer: torch.optim.Optimizer, arguments: dict[str, str], epoch: int, elapsed_s: float
) -> None:
    """Write the checkpoint so that a crash leaves the old one or the new one, never half of one."""
    state = {
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "arguments": arguments,
        "epoch": epoch,
        "elapsed_s": elapsed_s,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        torch.save(state, file)


def _resume(path: Path, model: OSNet, optimizer: torch.optim.Optimizer, arguments: dict[str, str]) -> tuple[int, float]:
    """Epochs done and seconds spent, after loading the checkpoint if there is one."""
    if not path.exists():
        return 0, 0.0
    saved = torch.load(path, map_location="cpu", weights_only=True)
    if saved["arguments"] != arguments:
        raise InputError(f"{path} is of a run with other arguments: {saved['arguments']}; delete it or name another")
    model.load_state_dict(saved["state_dict"])
    optimizer.load_state_dict(saved["optimizer"])
    _say(f"resumed after epoch {saved['epoch']} from {path}")
    return int(saved["epoch"]), float(saved["elapsed_s"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m edgevis.training.distill", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--teacher", type=Path, required=True, help="published OSNet x0.25 weights, without classifier")
    parser.add_argument("--photos", type=Path, required=True, help="the Clothing Co-Parsing zip")
    parser.add_argument("--video", type=Path, required=True, help="persons before a static camera")
    parser.add_argument("--output", type=Path, required=True, help="the weights to write, .safetensors")
    parser.add_argument("--checkpoint", type=Path, help="where to keep the state; default: beside the output")
    parser.add_argument("--epochs", type=int, default=36)
    parser.add_argument("--steps-per-epoch", type=int, default=100)
    parser.add_argument("--blockwise", type=float, default=0.3, help="share of the steps in which blocks learn alone")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--peak-learning-rate", type=float, default=4e-3)
    parser.add_argument("--warm-up", type=int, default=150, help="steps")
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--seed", type=int, default=20261120)
    parser.add_argument("--threads", type=int, default=int(os.environ.get("EDGEVIS_TRAIN_THREADS", "1")))
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="maps in bfloat16")
    parser.add_argument("--json", action="store_true", help="print the result as JSON at the end")
    return parser


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a command line prints


def main(argv: Sequence[str] | None = None) -> int:
    """Train; an error of ours becomes one line and exit status 1."""
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    return run_command(
        lambda: _distill(args), interrupted="the same command goes on after the last whole epoch from its checkpoint"
    )


def _distill(args: argparse.Namespace) -> int:
    result = distill(args)
    if args.json:
        _say(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
