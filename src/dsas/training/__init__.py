"""Training: how and when learned together, by gradients through the whole model; LinEAS, E2E-DSAS and preference.

plan        what is asked for                                learner     steps and states, whatever the loss is
objectives  what is made small, as functions of tensors      trainer     activations at the sites, for any model
descent     how parameters move                              preference  what a language model would say of pairs
proximal    the step that makes maps sparse                  loop        progress, log, resume, early stopping
passes      steered passes through a frozen model            learning    rules that can be learned, and their starts
records     log lines and states on disk                     run         models and pipelines as learners run them
ranks       several processes, each on its share             sets        texts, checked and held out
                                                             language    `dsas.train`
"""

from dsas.training.gradients import train
from dsas.training.plan import HeldOut, Optimiser

__all__ = ["HeldOut", "Optimiser", "train"]
