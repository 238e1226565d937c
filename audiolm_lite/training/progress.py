"""The position of a run in its steps and epochs, and when the run ends."""

from dataclasses import dataclass


@dataclass
class Progress:
    """Position of a run; together with the state of the random number generators it determines every later step.

    Attributes
    ----------
    epoch : int
        Current epoch, from 1.
    window : int
        Optimiser steps taken or skipped in this epoch.
    step : int
        Optimiser steps taken or skipped in all epochs.
    skipped : int
        Steps skipped in this epoch because the loss or the gradient was not finite.
    loss_sum, tokens : float
        Sums over this epoch's answer tokens.
    best : float or None
        Lowest cost (see `CheckpointFolder.cost`) of all validations.
    stale : int
        Validations since the best one.
    """

    epoch: int = 1
    window: int = 0
    step: int = 0
    skipped: int = 0
    loss_sum: float = 0.0
    tokens: float = 0.0
    best: float | None = None
    stale: int = 0

    @property
    def mean_loss(self) -> float:
        """Mean loss of this epoch, nats per answer token."""
        return self.loss_sum / max(1.0, self.tokens)

    def next_epoch(self, cost: float | None) -> "Progress":
        """Position after this epoch, whose validation had this cost; None: the validation is not ranked.

        Examples
        --------
        >>> progress = Progress(epoch=2, step=10, best=1.5)
        >>> progress.next_epoch(cost=1.7)
        Progress(epoch=3, window=0, step=10, skipped=0, loss_sum=0.0, tokens=0.0, best=1.5, stale=1)
        """
        best, stale = self.best, self.stale
        if cost is not None:
            best, stale = (cost, 0) if best is None or cost < best else (best, stale + 1)
        return Progress(epoch=self.epoch + 1, step=self.step, best=best, stale=stale)

    def stops_early(self, patience: int | None) -> bool:
        """Whether `patience` validations in a row were not better than the best one; None: never."""
        return patience is not None and self.stale >= patience

    def is_finished(self, epochs: int, patience: int | None) -> bool:
        """Whether all epochs are done or training stops early."""
        return self.epoch > epochs or self.stops_early(patience)
