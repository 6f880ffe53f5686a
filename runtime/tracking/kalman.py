"""A Kalman filter of boxes with constant velocity, for all tracks at once.

The state is that of DeepSORT (Wojke, Bewley and Paulus, ICIP 2017): centre x and y, width over height, height, and
their velocities per frame; the noise is in shares of the height. No noise couples two of the four, so the 8 x 8
covariance is four of 2 x 2, and no matrix is inverted.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from runtime.common.arrays import Array

_POSITION = 1 / 20  # standard deviation of a position, in heights
_VELOCITY = 1 / 160
_RATIO = 1e-2  # of width over height
_RATIO_VELOCITY = 1e-5
_MEASURED_RATIO = 1e-1


class BoxFilter:
    """The filtered boxes of N tracks.

    Attributes:
        position: (N, 4) float64: centre x, centre y, width over height, height.
        velocity: (N, 4) float64, per frame.
    """

    def __init__(self) -> None:
        self.position = np.empty((0, 4))
        self.velocity = np.empty((0, 4))
        self._covariance = np.empty((0, 4, 3))  # of position; of position and velocity; of velocity

    def __len__(self) -> int:
        return len(self.position)

    def add(self, boxes: Array) -> None:
        """Begin tracks at (M, 4) xyxy boxes, without velocity."""
        position = centred(boxes)
        height = position[:, 3]
        covariance = np.zeros((len(boxes), 4, 3))
        covariance[:, :, 0] = (2 * _spread(height, _POSITION, _RATIO)) ** 2
        covariance[:, 2, 0] = _RATIO**2
        covariance[:, :, 2] = (10 * _spread(height, _VELOCITY, _RATIO_VELOCITY / 10)) ** 2
        self.position = np.concatenate([self.position, position])
        self.velocity = np.concatenate([self.velocity, np.zeros_like(position)])
        self._covariance = np.concatenate([self._covariance, covariance])

    def predict(self, frames: int) -> None:
        """Move all tracks on by some frames."""
        height = self.position[:, 3]
        position, both, velocity = (self._covariance[:, :, part] for part in range(3))
        self.position = self.position + frames * self.velocity
        self.position[:, 3] = np.maximum(self.position[:, 3], 1.0)
        self.position[:, 2] = np.maximum(self.position[:, 2], 1e-2)
        position = position + 2 * frames * both + frames**2 * velocity
        position = position + frames * _spread(height, _POSITION, _RATIO) ** 2
        both = both + frames * velocity
        velocity = velocity + frames * _spread(height, _VELOCITY, _RATIO_VELOCITY) ** 2
        self._covariance = np.stack([position, both, velocity], axis=2)

    def correct(self, tracks: Array, boxes: Array) -> None:
        """Take (M, 4) measured boxes for the tracks of these M numbers."""
        measured = centred(boxes)
        covariance = self._covariance[tracks]
        position, both, velocity = (covariance[:, :, part] for part in range(3))
        noise = _spread(self.position[tracks, 3], _POSITION, _MEASURED_RATIO) ** 2
        innovation = measured - self.position[tracks]
        gain, gain_velocity = position / (position + noise), both / (position + noise)
        self.position[tracks] += gain * innovation
        self.velocity[tracks] += gain_velocity * innovation
        self._covariance[tracks] = np.stack(
            [position - gain * position, both - gain * both, velocity - gain_velocity * both], axis=2
        )

    def stop_resizing(self, tracks: Array) -> None:
        """Set the velocity of the height to zero, as ByteTrack does for tracks without a detection."""
        self.velocity[tracks, 3] = 0.0

    def keep(self, tracks: Array) -> None:
        """Drop all tracks but those of these numbers."""
        self.position, self.velocity = self.position[tracks], self.velocity[tracks]
        self._covariance = self._covariance[tracks]

    @property
    def boxes(self) -> npt.NDArray[np.float64]:
        """(N, 4) xyxy in pixels."""
        half_height = self.position[:, 3:] / 2
        half = np.concatenate([self.position[:, 2:3] * half_height, half_height], axis=1)
        return np.concatenate([self.position[:, :2] - half, self.position[:, :2] + half], axis=1)


def centred(boxes: Array) -> npt.NDArray[np.float64]:
    """(N, 4) xyxy to centre x, centre y, width over height, height."""
    wide = np.asarray(boxes, np.float64).reshape(-1, 4)
    sides = np.maximum(wide[:, 2:] - wide[:, :2], 1e-3)
    return np.concatenate([(wide[:, :2] + wide[:, 2:]) / 2, sides[:, :1] / sides[:, 1:], sides[:, 1:]], axis=1)


def _spread(height: Array, share: float, ratio: float) -> npt.NDArray[np.float64]:
    """(N, 4) standard deviations: shares of the height, and a constant for width over height."""
    spread = np.repeat(share * height[:, None], 4, axis=1)
    spread[:, 2] = ratio
    return np.asarray(spread)
