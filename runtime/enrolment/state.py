"""The enrolment of an open model in memory, and its changes since it was last read or saved."""

from __future__ import annotations

import os
from dataclasses import replace

from runtime.enrolment.file import (
    LOCK_TIMEOUT_S,
    Enrolment,
    EnrolmentEncoder,
    check_encoder,
    load_enrolment,
    save_enrolment,
    update_enrolment,
)
from runtime.errors import EnrolmentError, InputError
from runtime.gallery import Enrolled
from runtime.gallery.rows import counts_by_label
from runtime.open_set.decision import OpenSet


class EnrolmentState:
    """Saves, loads and merges the enrolment of an open model. The caller locks it against concurrent changes.

    Args:
        gallery: The enrolled rows by label.
        open_set: The open-set decision; None for a task without scores between labels.
        encoder: The encoder that makes the rows.
        keep_rate: Whether the false-accept rate was set by the caller, so that loading a file does not change it.
    """

    def __init__(
        self, gallery: Enrolled, open_set: OpenSet | None, encoder: EnrolmentEncoder, *, keep_rate: bool
    ) -> None:
        self._gallery, self._open_set, self._encoder = gallery, open_set, encoder
        self._keep_rate = keep_rate
        # Of the file of the last load, save or update: its rows by label, and what was forgotten or set anew since.
        self._known: dict[str, int] = {}
        self._forgotten: set[str] = set()
        self._settings_changed = False

    def forget(self, label: str) -> None:
        """Remove a label; UnknownLabelError when it is not enrolled."""
        self._gallery.remove(label)
        self._forgotten.add(label)

    def settings_changed(self) -> None:
        """Note that the threshold, the rate or the strangers are no longer those of the file."""
        self._settings_changed = True

    def rate_changed(self, rate: float | None) -> None:
        """Note that the false-accept rate was set; None returns it to the file's."""
        self._keep_rate = rate is not None
        self._settings_changed = True

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to a file; EnrolmentError, and the file is unchanged, when that is not possible."""
        enrolment = self._current()
        save_enrolment(path, enrolment)
        self._agree(enrolment)

    def read(self, path: str | os.PathLike[str]) -> Enrolment:
        """Read a file that this encoder, or one measured to be exchangeable with it, wrote.

        Raises:
            EnrolmentError: The file is missing or damaged.
            EnrolmentMismatchError: Another encoder wrote it.
        """
        enrolment = load_enrolment(path)
        check_encoder(enrolment.encoder, self._encoder, path)
        return enrolment

    def take(self, enrolment: Enrolment, path: str | os.PathLike[str]) -> None:
        """Replace the enrolment by that of ``path``; EnrolmentError when it does not fit the model."""
        enrolment = self._in_space(enrolment)
        open_set = self._open_set
        if open_set is None and (enrolment.threshold is not None or enrolment.strangers is not None):
            raise EnrolmentError(f"{path} does not fit this model: it has a threshold, and this task has no scores")
        try:
            self._gallery.replace(enrolment.rows)
            if open_set is not None:
                open_set.set_by_hand(enrolment.threshold)
                open_set.calibrate(enrolment.strangers)
                if not self._keep_rate:
                    open_set.set_rate(enrolment.false_accept_rate)
                open_set.features()  # of a large enrolment these take a while: now, not at the first frame
        except InputError as error:
            raise EnrolmentError(f"{path} does not fit this model: {error}") from error
        self._agree(enrolment)

    def update(self, path: str | os.PathLike[str], *, timeout_s: float = LOCK_TIMEOUT_S) -> None:
        """Merge the changes since the last load, save or update into a file, and take over changes by others."""
        current = self._current()
        merged = update_enrolment(
            path,
            current,
            known=self._known,
            forgotten=frozenset(self._forgotten),
            keep_settings=not self._settings_changed,
            adapt=self._in_space,
            timeout_s=timeout_s,
        )
        if merged is not current:
            self.take(merged, path)
        self._agree(merged)

    def _current(self) -> Enrolment:
        rows = self._gallery.contents()
        if self._open_set is None:
            return Enrolment(self._encoder, rows, None)
        return Enrolment(self._encoder, rows, self._open_set.by_hand, self._open_set.strangers, self._open_set.own_rate)

    def _in_space(self, enrolment: Enrolment) -> Enrolment:
        """The enrolment in the encoder's score space; files written before score spaces hold raw embeddings."""
        if self._open_set is None or enrolment.encoder.space == self._encoder.space:
            return enrolment
        rows = {label: self._open_set.project(rows) for label, rows in enrolment.rows.items()}
        return replace(enrolment, encoder=self._encoder, rows=rows, strangers=None)

    def _agree(self, enrolment: Enrolment) -> None:
        """Record that a file holds the present enrolment."""
        self._known = counts_by_label(enrolment.rows)
        self._forgotten = set()
        self._settings_changed = False
