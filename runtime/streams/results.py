"""The results of a stream's frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from runtime.common.closing import Closing
from runtime.images.decode import Image
from runtime.streams.ahead import AheadReader
from runtime.streams.reader import StreamReader
from runtime.streams.stats import SourceStats

R = TypeVar("R")


class ResultStream(Closing, Generic[R]):
    """Each frame of a stream with its result: an iterator over pairs.

    Of one source the frame is its image, (H, W, 3) uint8 BGR; of several it is a :class:`Frame`, which names its
    source. It ends with the stream; :meth:`close` and leaving its context end it early.

    Args:
        reader: The frames; closed with this stream.
        prepare: Maps the images of a list of frames to what ``predict`` takes, by a thread that is one list ahead.
        predict: Maps prepared images to their results, by the thread that iterates.
    """

    def __init__(
        self,
        reader: StreamReader,
        *,
        prepare: Callable[[list[Image]], Sequence[Image]],
        predict: Callable[[Sequence[Image]], Sequence[R]],
    ) -> None:
        self._reader, self._predict = reader, predict
        self._ahead = AheadReader(reader, lambda frames: partial(prepare, [frame.image for frame in frames]))
        self._ready: deque[tuple[Any, R]] = deque()

    def __iter__(self) -> Iterator[tuple[Any, R]]:
        return self

    def __next__(self) -> tuple[Any, R]:
        if not self._ready:
            frames, images = next(self._ahead)
            try:
                results = self._predict(images)
            except BaseException:
                self.close()
                raise
            self._ready.extend(
                (frame.image if self._reader.single else frame, result)
                for frame, result in zip(frames, results, strict=True)
            )
        return self._ready.popleft()

    @property
    def stats(self) -> tuple[SourceStats, ...]:
        """The counts, rates and latencies of each source, in the order of the sources."""
        return self._reader.stats

    def close(self) -> None:
        """End the stream and every thread of it within a second."""
        self._ready.clear()
        self._ahead.close()
