"""Foreign objects: what other libraries hand over and is taken as it comes, under the names that say what it is.

Importing their classes would import the libraries, and most may be of several kinds.
"""

from typing import Any

Model = Any  # a transformers model, or another torch module that takes input_ids
Tokenizer = Any  # a transformers tokenizer
Pipeline = Any  # a diffusers pipeline
Foreign = Any  # another object of another library, or one that is only passed on
Given = Any  # what a module takes or gives: a tensor, a tuple of them, a model output
Arguments = tuple[Given, ...]  # of a module's call, by place
Options = dict[str, Given]  # of a call, by name
