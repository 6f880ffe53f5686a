"""The predictor: opens a bundle with the best engine of this machine, and maps images to results."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, overload

import numpy as np

from runtime import tasks
from runtime.bundle.bundle import Bundle
from runtime.bundle.identity import NOT_COVERED
from runtime.common.arrays import Array
from runtime.common.closing import Closing
from runtime.common.forking import fork_waits, holds_up_forks
from runtime.enrolment.file import LOCK_TIMEOUT_S, MAX_LABEL_LENGTH, EnrolmentEncoder, is_label
from runtime.enrolment.quality import EnrolmentReport, image_names
from runtime.enrolment.state import EnrolmentState
from runtime.errors import EdgevisError, InputError
from runtime.gallery.embedded import EmbeddedGallery
from runtime.images.decode import Image, ImageLike, as_images, orientation_of, several
from runtime.images.masks import MaskLike, as_masks
from runtime.images.preprocess import Preprocessor
from runtime.open_set.bundled import open_set_arrays
from runtime.open_set.decision import OpenSet, OpenSetInfo
from runtime.open_set.strangers import LIVE_S, sampled_rows
from runtime.selection.choose import SelectedEngine, open_best
from runtime.selection.info import Info, info_of
from runtime.streams.feed import Drop
from runtime.streams.reader import OnError, StreamReader, frames
from runtime.streams.results import ResultStream
from runtime.streams.sources import Source
from runtime.tasks import Result

_log = logging.getLogger("edgevis.bundle")

MAX_THREADS = 1024
"""CPU threads that an engine may be asked for: engines make as many as they are told, and fail in many ways."""


class Predictor(Closing):
    """Runs a bundle. Threads may share it.

    Args:
        bundle: The folder ``NAME.edgevis`` that export wrote, or the name of a ready bundle of the package,
            such as ``"osnet-x0-25"``; a path that exists wins.
        backend: ``"auto"`` or the name of a file in ``runtime/backends/``.
        device: ``"auto"`` or a device of the backend, such as ``"cpu"``.
        precision: ``"fp32"``, ``"fp16"``, ``"bf16"`` or ``"int8"``; None takes the fastest that was measured to decide
            as the PyTorch model does.
        threads: CPU threads for the engine; None leaves the choice to the backend.
        false_accept_rate: The share of strangers, 0.0001..0.5, for whom any label may come back (FPIR), per query and
            whatever the number of labels; None takes the one of the enrolment that is loaded, or the model's (0.07).
            A promise after :meth:`calibrate`, before it an estimate; ``info.open_set`` says which.
        index_from: From how many enrolled rows on a query goes through an approximate index, for tasks that compare
            embeddings; None (the default) searches exactly however many there are. The index is made by a thread
            while exact searches go on, and used only if it was measured to be faster and to find 99 % of the ten
            best labels: ``info.search_index``. Needs ``edgevis[search]``.
        digest: The digest of the bundle's manifest as it was noted down where the bundle was built: no other bundle is
            opened. None opens whatever is there and is whole.

    Raises:
        InputError: An argument is not allowed.
        BundleError: The bundle is missing, malformed, altered, or not the one that ``digest`` names.
        BackendError: No engine of it can be opened; the message says why for each.
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        *,
        backend: str = "auto",
        device: str = "auto",
        precision: str | None = None,
        threads: int | None = None,
        false_accept_rate: float | None = None,
        index_from: int | None = None,
        digest: str | None = None,
    ) -> None:
        whole = isinstance(threads, int) and not isinstance(threads, bool)
        if threads is not None and not (whole and 1 <= threads <= MAX_THREADS):
            raise InputError(f"threads is {threads!r}; allowed: None or an int >= 1 and <= {MAX_THREADS}")
        opened_bundle = Bundle(bundle, digest=digest)
        if not opened_bundle.manifest.digest:
            _log.warning("%s: %s", opened_bundle.path.name, NOT_COVERED)
        tasks.load(opened_bundle.manifest.deployment.task)  # before an engine is opened
        opened = open_best(opened_bundle, backend=backend, device=device, precision=precision, threads=threads)
        self._start(opened_bundle, opened, threads=threads, false_accept_rate=false_accept_rate, index_from=index_from)

    def _start(
        self,
        bundle: Bundle,
        opened: SelectedEngine,
        *,
        threads: int | None = None,
        false_accept_rate: float | None = None,
        index_from: int | None = None,
        preprocess: Preprocessor | None = None,
    ) -> None:
        """Initialise with an open engine; the engine is closed if that fails."""
        self._bundle = bundle
        manifest = bundle.manifest
        deployment = manifest.deployment
        task = tasks.load(deployment.task)
        self._changing = threading.RLock()  # held by what changes what is enrolled
        self._threads = threads
        self._opened = opened
        self._closed = False
        record = self._opened.record
        self._preprocess = preprocess or Preprocessor(deployment.preprocess)
        try:
            arrays = open_set_arrays(self._bundle)
            self._task = task.open_task(
                tasks.Context(deployment, self._opened.sessions, self._preprocess, arrays, index_from)
            )
            if index_from is not None:
                self._scored("index_from")
            if false_accept_rate is not None:
                self._scored("false_accept_rate").set_rate(false_accept_rate)
            space = "" if self._task.open_set is None else self._task.open_set.space_digest
            encoder = EnrolmentEncoder(
                manifest.encoder_identity, manifest.model, record.name, record.shares_enrolments, space
            )
            self._enrolment = EnrolmentState(
                self._task.gallery, self._task.open_set, encoder, keep_rate=false_accept_rate is not None
            )
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        record = self._opened.record
        return f"<Predictor {self._bundle.path.name}: {record.name} on {record.device}, {len(self.labels)} labels>"

    def close(self) -> None:
        """Free the engine's memory. A closed predictor must not be used; closing twice does no harm."""
        if not self._closed:
            self._closed = True
            for session in self._opened.sessions.values():
                session.close()

    @overload
    def predict(self, images: list[ImageLike] | tuple[ImageLike, ...], *, top_k: int = 5) -> list[Result]: ...

    @overload
    def predict(self, images: ImageLike, *, top_k: int = 5) -> Any: ...

    @holds_up_forks
    def predict(self, images: ImageLike | Sequence[ImageLike], *, top_k: int = 5) -> Result | list[Result]:
        """Predict on one image or several.

        Args:
            images: One image – (H, W, 3) uint8 BGR, the path or the bytes of an image file, or a PIL image; see
                :mod:`runtime.images.decode` – or a list of them.
            top_k: The largest number of labels that a result ranks.

        Returns:
            One result for one image, a list of results for a list; of an empty list an empty list.

        Raises:
            InputError: An image is of the wrong type, dtype or shape.
            SourceError: A path cannot be read.
            EnrolmentError: The task needs an enrolment and there is none.
            EngineError: The engine failed.
        """
        self._check_open()
        batch, single = as_images(images)
        results = self._predict(batch, top_k)
        return results[0] if single else results

    __call__ = predict

    @holds_up_forks
    def _predict(self, images: Sequence[Image], top_k: int) -> list[Result]:
        if isinstance(top_k, bool) or not isinstance(top_k, (int, np.integer)) or top_k < 1:
            raise InputError(f"top_k is {top_k!r}; allowed: an int >= 1")
        self._check_open()
        return self._task.predict(images, top_k=int(top_k)) if images else []

    @holds_up_forks
    def embed(self, images: ImageLike | Sequence[ImageLike]) -> Array:
        """Embeddings of one image or several: (N, D) float32, rows of length one.

        Raises:
            InputError: An image is not allowed, or the task has no embeddings.
        """
        self._check_open()
        return self._task.embed(as_images(images)[0])

    @holds_up_forks
    def enroll(
        self,
        label: str,
        images: ImageLike | Sequence[ImageLike],
        *,
        masks: MaskLike | Sequence[MaskLike] | None = None,
        strict: bool = False,
    ) -> EnrolmentReport:
        """Enrol examples of a label; for a known label they are added.

        Every image is judged: size, blur, exposure, whether it repeats another one, and whether it belongs to the
        label. Images that cannot work are left out, all others are enrolled; the report names both.

        Args:
            label: The name of what the images show.
            images: One image or several, as for :meth:`predict`.
            masks: For few-shot segmentation, where the object is in each image: (H, W) bool, or integers of which one
                value besides 0 marks the object, of the image's size; a path or a PIL image of such; see
                :mod:`runtime.images.masks`.
            strict: Enrol nothing when anything speaks against any of the images.

        Returns:
            The number of enrolled images and the findings for each, see :class:`edgevis.EnrolmentReport`.

        Raises:
            InputError: The label, an image or a mask is not allowed; nothing has been enrolled.
            EnrolmentRefusedError: None of the images can be used, or anything speaks against one of them and
                ``strict``; nothing has been enrolled. Its ``report`` has the reasons.
            SourceError: A path cannot be read; nothing has been enrolled.
            EnrolmentError: This model takes no enrolments.
        """
        self._check_open()
        _check_label(label)
        turned = [] if masks is None else [orientation_of(image) for image in several(images) or [images]]
        batch, _ = as_images(images)
        if not batch:
            raise InputError("the list of images is empty; give at least one image")
        marks = None if masks is None else as_masks(masks, batch, turned)
        with self._changing:
            return self._task.enroll(label, batch, marks, names=image_names(images), strict=strict)

    @holds_up_forks
    def enroll_rows(self, label: str, rows: Array) -> None:
        """Enrol (N, D) float32 unit rows of the gallery's space, such as a pipeline keeps of an unknown.

        Raises:
            InputError: The label or the rows are not allowed, or the task has no embeddings; nothing was enrolled.
        """
        self._check_open()
        _check_label(label)
        gallery = self._task.gallery
        if not isinstance(gallery, EmbeddedGallery):
            raise InputError(f"the task {self._bundle.manifest.deployment.task!r} has no embeddings to enrol")
        with self._changing:
            gallery.add(label, rows)

    @property
    def task(self) -> tasks.Task:
        """The open task behind this predictor, for what composes predictors, such as a pipeline."""
        return self._task

    @holds_up_forks
    def forget(self, label: str) -> None:
        """Remove a label and all its examples; UnknownLabelError when it is not enrolled."""
        with self._changing:
            self._enrolment.forget(label)

    @property
    def labels(self) -> tuple[str, ...]:
        """The enrolled labels in order of enrolment; for a model with fixed classes, its classes."""
        return self._task.gallery.labels

    @property
    @holds_up_forks
    def threshold(self) -> float | None:
        """The score, -1..1, from which a label comes back; None when nothing is known of strangers yet.

        It follows what is enrolled, at the false-accept rate that is asked, until it is set by hand; setting it to
        None makes it follow again. Of a model with fixed classes it is the score, 0..1, from which a box or a pixel
        counts; None sets the bundle's own.
        """
        return tasks.threshold_of(self._task)

    @threshold.setter
    @holds_up_forks
    def threshold(self, value: float | None) -> None:
        if isinstance(self._task, tasks.TrainedScores):
            self._task.set_threshold(value)
            return
        number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
        if value is not None and not (number and -1.0 <= value <= 1.0):
            raise InputError(f"threshold is {value!r}; allowed: a cosine, -1..1, or None to have it fitted")
        self._scored("threshold").set_by_hand(None if value is None else float(value))
        self._enrolment.settings_changed()

    @property
    def false_accept_rate(self) -> float | None:
        """The target FPIR, see the argument of that name; None for a task without scores between labels."""
        open_set = self._task.open_set
        return None if open_set is None else open_set.rate

    @false_accept_rate.setter
    @holds_up_forks
    def false_accept_rate(self, value: float | None) -> None:
        self._scored("false_accept_rate").set_rate(value)
        self._enrolment.rate_changed(value)

    def calibrate(self, strangers: Source | None) -> OpenSetInfo:
        """Measure the open-set threshold on strangers: images in which nobody and nothing is enrolled.

        From then on ``false_accept_rate`` is the share of such strangers for whom any label comes back, also when
        labels are added and forgotten. The strangers' embeddings, at most 2,000, are kept and saved with the enrolment:
        they are biometric data, too. ``calibrate(None)`` forgets them.

        Args:
            strangers: A list of images, as for :meth:`predict`, a folder, a video – a minute of the camera's own, with
                nobody enrolled in it – or whatever else :meth:`stream` takes; of a camera, its next minute. At least 20
                images; 100 for 1 %.

        Returns:
            The operating point, as ``info.open_set``.

        Raises:
            InputError: They are too few, or the task has no scores between labels.
            SourceError: An image or the video cannot be read; the calibration is as before.
        """
        self._check_open()
        self._scored("calibration")
        if strangers is None:
            return self.calibrate_rows(None)
        _, rows = sampled_rows(enumerate(frames(strangers, live_s=LIVE_S)), self._task.scored_rows)
        return self.calibrate_rows(rows)

    def calibrate_rows(self, rows: Array | None) -> OpenSetInfo:
        """As :meth:`calibrate`, by (S, D) float32 unit rows of the gallery's space, as a pipeline has of its tracks."""
        self._check_open()
        open_set = self._scored("calibration")
        with fork_waits():
            open_set.calibrate(rows)
            self._enrolment.settings_changed()
            return open_set.info

    def _scored(self, what: str) -> OpenSet:
        """The open-set decision; InputError for a task without one."""
        if self._task.open_set is None:
            raise InputError(f"{what}: the task {self._bundle.manifest.deployment.task!r} has no scores between labels")
        return self._task.open_set

    @holds_up_forks
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the enrolment to a file, replacing its content; the file appears whole or not at all.

        Where several processes enrol into one file, use :meth:`update`.

        Raises:
            EnrolmentError: It cannot be written, or is a file of another kind; what was there is unchanged.
        """
        with self._changing:
            self._enrolment.save(path)

    @holds_up_forks
    def load(self, path: str | os.PathLike[str]) -> None:
        """Replace the enrolment by that of a file.

        Raises:
            EnrolmentError: The file is missing or damaged; what is enrolled stays.
            EnrolmentMismatchError: Another encoder made it; what is enrolled stays.
        """
        enrolment = self._enrolment.read(path)
        with self._changing:
            self._enrolment.take(enrolment, path)

    @holds_up_forks
    def update(self, path: str | os.PathLike[str], *, timeout_s: float = LOCK_TIMEOUT_S) -> None:
        """Merge the changes since the last load, save or update into a file.

        What other processes have written to the file meanwhile stays, and is enrolled here afterwards. The file is
        locked only while it is read and written, not while images are embedded. It is made if there is none.

        Args:
            path: The file; after :meth:`load`, the one that was loaded.
            timeout_s: Seconds to wait for another process that changes the file.

        Raises:
            EnrolmentError: It is damaged, cannot be written, or another process keeps it locked; it is unchanged.
            EnrolmentMismatchError: Another encoder made it; it is unchanged.
        """
        with self._changing:
            self._enrolment.update(path, timeout_s=timeout_s)

    def stream(
        self,
        source: Source | Sequence[Source],
        *,
        top_k: int = 5,
        drop: Drop = "auto",
        reconnect: bool = True,
        timeout_s: float = 10.0,
        batch: int = 1,
        on_error: OnError | None = None,
    ) -> ResultStream[Result]:
        """Each frame of a source with its result, decoded and preprocessed by threads while earlier ones are predicted.

        ``speed_ms`` of a result leaves out preprocessing that was done meanwhile.

        Args:
            source: A camera's index, the path of a video or of a folder of images, a network address such as
                ``rtsp://…``, or any iterable of images: pairs of image and result come back. A list of such sources
                shares the engine; pairs of :class:`Frame`, with ``image`` and ``source``, and result come back.
            top_k: As in :meth:`predict`.
            drop, reconnect, timeout_s, batch, on_error: As in :class:`runtime.streams.reader.StreamReader`.
        """
        reader = StreamReader(
            source, drop=drop, reconnect=reconnect, timeout_s=timeout_s, batch=batch, on_error=on_error
        )
        prepare = partial(self._preprocess.prepare, at_most=self._bundle.manifest.deployment.max_batch)
        return ResultStream(reader, prepare=prepare, predict=lambda images: self._predict(images, top_k))

    def warmup(self, *, batch_sizes: Sequence[int] = (1,)) -> None:
        """Run every graph once at these batch sizes, so that the first real image does not wait for compilation."""
        self._check_open()
        for size in batch_sizes:
            for session in self._opened.sessions.values():
                session.warmup(size)

    @property
    @holds_up_forks
    def info(self) -> Info:
        """The running engine: backend, device, precision, encoder identity, measured parity, and why this engine."""
        return info_of(self._bundle, self._opened, self._task, threads=self._threads)

    def _check_open(self) -> None:
        if self._closed:
            raise EdgevisError("this predictor has been closed; open another one")


def _check_label(label: str) -> None:
    if not is_label(label):
        raise InputError(f"label {label!r} is not allowed: printable text of 1 to {MAX_LABEL_LENGTH} characters")


def predictor_of(bundle: Bundle, opened: SelectedEngine, preprocess: Preprocessor | None = None) -> Predictor:
    """A predictor for an engine that is already open; the predictor closes it.

    A build and ``edgevis verify`` run each engine, and the PyTorch model, as a customer's predictor would be run;
    ``preprocess`` takes the place of what the bundle declares.

    Raises:
        BundleError: The bundle does not fit the engine or its task; the engine is closed.
    """
    predictor = Predictor.__new__(Predictor)
    predictor._start(bundle, opened, preprocess=preprocess)  # the other way to make one
    return predictor
