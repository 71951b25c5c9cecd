"""Foreign objects: objects of other libraries that dsas uses as they are, under names that say what they are.

Importing their classes would import the libraries, and most objects may be of several classes.
"""

from typing import Any

Model = Any  # a transformers model, or another torch module that takes input_ids
Tokenizer = Any  # a transformers tokenizer
Pipeline = Any  # a diffusers pipeline
Foreign = Any  # any other object of a library, or one that is only passed on
Given = Any  # the input or output of a module: a tensor, a tuple of them, a model output
Arguments = tuple[Given, ...]  # positional arguments of a module's call
Options = dict[str, Given]  # named arguments of a call
