"""dsas: steer a generative model only when and where it is needed (arXiv 2512.03661).

steering = dsas.fit(model, tokenizer, source=unwanted, control=neutral, target=wanted)
with steering.apply(model, strength=1.0):
model.generate(...)
"""

from dsas.applied import Applied, Rule
from dsas.collection import Reading
from dsas.errors import DsasError, DsasWarning
from dsas.explain import explain
from dsas.fit import fit
from dsas.regulators import REGULATORS, Constant, Logistic, Regulator
from dsas.sites import Site, find_sites
from dsas.steering import Steering
from dsas.trace import Trace
from dsas.transforms import TRANSFORMS, Addition, Transform
from dsas.version import VERSION as __version__

__all__ = [
    "REGULATORS",
    "TRANSFORMS",
    "Addition",
    "Applied",
    "Constant",
    "DsasError",
    "DsasWarning",
    "Logistic",
    "Reading",
    "Regulator",
    "Rule",
    "Site",
    "Steering",
    "Trace",
    "Transform",
    "__version__",
    "explain",
    "find_sites",
    "fit",
]
