"""The demo: real models and real texts from registry packages, and the experiments shown on them."""
