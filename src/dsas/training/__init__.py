"""Training: learn how and when to steer together, by gradients through the whole model.

objectives  what is minimised, one per file behind one contract
gradients   `dsas.train`                              learner   steps and states, whatever the loss is
plan        the options                               trainer   a learner that compares activations at the sites
terms       terms of the loss, as functions           loop      progress, log, resume, early stopping
descent     how parameters move                       learning  rules that can be learned, and where they start
proximal    the step that makes transforms sparse     run       models and pipelines as learners run them
passes      steered passes through a frozen model     sets      texts, checked and held out
records     log lines and states on disk              ranks     several processes, each on its share
next_tokens a learner that compares next tokens      answering answers that the model gives beforehand
"""
