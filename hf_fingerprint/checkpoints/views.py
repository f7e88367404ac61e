"""Views of an open checkpoint, which present its tensors in another way."""

import numpy as np

from hf_fingerprint.checkpoints.reader import Checkpoint


class CheckpointView(Checkpoint):
    """What all views of an open checkpoint share. Closing one closes the checkpoint.

    Args:
        stored ([`Checkpoint`]): the open checkpoint.
    """

    def __init__(self, stored: Checkpoint):
        self.source, self.left_out, self.data_starts = stored.source, stored.left_out, stored.data_starts
        self.container, self.companions = stored.container, stored.companions
        self._stored = stored

    def close(self) -> None:
        """Closes the checkpoint."""
        self._stored.close()

    def state(self) -> str:
        """The checkpoint's state."""
        return self._stored.state()

    def read_file(self, file: int, offset: int, buffer: np.ndarray) -> np.ndarray:
        """Fills `buffer` (`uint8`) with bytes of a weight file from `offset`, and returns it."""
        return self._stored.read_file(file, offset, buffer)
