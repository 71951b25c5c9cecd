"""Training: how and when learned together, by gradients through the whole model; LinEAS and E2E-DSAS.

objectives  what is made small, as functions of tensors      learning  rules that can be learned, and their starts
proximal    the step that makes maps sparse                  trainer   gradients, steps and looks, for any model
passes      steered passes through a frozen model            loop      progress, log, resume, early stopping
records     log lines and states on disk                     run       models and pipelines as the trainer runs them
ranks       several processes, each on its share             language  `dsas.train`
"""

from dsas.training.language import train
from dsas.training.plan import HeldOut, Optimiser

__all__ = ["HeldOut", "Optimiser", "train"]
