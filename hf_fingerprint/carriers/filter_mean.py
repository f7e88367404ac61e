"""DeepMarks' own carrier: one convolution averaged over its filters, and a dense secret projection.

    y = U^T X mean_f(w)         so that the paper's MSE(f, X w) with f = U b is |y - b|^2 / v

with X Gaussian of mean 0 and U orthonormal, both from a key (arXiv 1804.03648; two public implementations agree).
Several convolutions are one longer vector, so the extracted signal is additive over them, and over shards of rows.
"""

from typing import TYPE_CHECKING

import numpy as np

from hf_fingerprint.keys import Stream, derive


if TYPE_CHECKING:
    import torch


def gaussian_projection(key: bytes, name: str, points: int, columns: int) -> np.ndarray:
    """X for one tensor: independent standard normals from a key, `float64` of shape `(points, columns)`."""
    raw = Stream(derive(key, "gaussian", name)).take(8 * points * columns).view("<u8")
    from scipy.special import ndtri

    return ndtri(((raw >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53).reshape(points, columns)


def orthonormal(key: bytes, points: int) -> np.ndarray:
    """U: an orthonormal matrix from a key, uniform (Haar), `float64` of shape `(points, points)`.

    F. Mezzadri, "How to generate random matrices from the classical compact groups", Notices AMS 54 (2007): QR of a
    Gaussian matrix, with R's diagonal made positive.
    """
    q, r = np.linalg.qr(gaussian_projection(derive(key, "orthonormal"), "", points, points))
    return q * np.sign(np.diag(r))


class FilterMeanMap:
    """A dense matrix, `U^T X` of shape `(v, columns)`, on the mean of a tensor's filters (rows)."""

    def __init__(self, matrix: np.ndarray, rows: int):
        import torch

        self.rows, self.columns, self.length = rows, matrix.shape[1], len(matrix)
        self._matrix = torch.from_numpy(np.array(matrix, np.float32))

    def __repr__(self) -> str:
        return f"FilterMeanMap(rows={self.rows}, columns={self.columns}, length={self.length})"

    def to(self, device: "torch.device") -> None:
        """Moves the matrix to a device."""
        self._matrix = self._matrix.to(device)

    def keep(self, first_row: int, rows: int) -> None:
        """Does nothing: the matrix always stays in memory."""

    def gram(self) -> "torch.Tensor":
        """`A A^T` of the map from the tensor's weights to the extracted signal, shape `(v, v)`."""
        return self._matrix @ self._matrix.T / self.rows

    def read(self, weights: "torch.Tensor", first_row: int, out: "torch.Tensor") -> None:
        """Adds `U^T X mean_f(w)` for some rows of the tensor to `out`, shape `(v,)`."""
        import torch

        with torch.autocast(weights.device.type, enabled=False):
            out += self._matrix @ (weights.float().sum(0) / self.rows)

    def adjoint(self, direction: "torch.Tensor", first_row: int, out: "torch.Tensor") -> None:
        """Adds `X^T U u / rows` to every row of `out`, shape `(rows, columns)`."""
        import torch

        with torch.autocast(out.device.type, enabled=False):
            out += (self._matrix.T @ direction / self.rows).to(out.dtype)
