"""A running mean that stays on the device until somebody prints it."""

import torch
from fairseq.logging import metrics
from fairseq.logging.meters import AverageMeter

DECIMALS = 3


class DeviceAverageMeter(AverageMeter):
    """fairseq's ``AverageMeter`` without its two host reads: of the weight, and of the value when it is rounded.

    fairseq asks every meter for its rounded value at every update, printed or not.
    """

    def update(self, val, n=1):
        self.val = val
        self.sum = self.sum + val * n
        self.count = self.count + n

    @property
    def avg(self):
        return self.val if self.val is None else self.sum / self.count

    @property
    def smoothed_value(self):
        """The mean, rounded; a 0-d tensor where the values were tensors."""
        mean = self.avg
        if torch.is_tensor(mean):
            # double, so that a printed 0.6 is not 0.6000000238
            return mean.detach().double().round(decimals=DECIMALS)
        return mean if mean is None else round(mean, DECIMALS)


# A checkpoint records meters by class name, and fairseq knows its own names only. What it makes of this one on
# resuming is a plain AverageMeter, which serves for the means over an epoch.
DeviceAverageMeter.__name__ = "AverageMeter"


def log_mean(key, value, weight=1):
    """Add ``value`` with ``weight`` to the mean logged as ``key``."""
    metrics.log_custom(lambda: DeviceAverageMeter(DECIMALS), key, value, weight)
