"""llama.cpp through llama_cpp's low-level API: the only folder that imports it.

backend    a GGUF model as a `Backend`: weights, context, batches, sequences
options    how to load it
vocabulary its tokenizer and its chat template
probe      whether a file loads at all
sampling   how tokens are chosen, and their probabilities
embedding  vectors of texts, in a context of their own
devices    GPUs, and other machines' memory
lend       the child process that lends this machine's memory
native     what is done once a process, and what llama.cpp said last
"""

from __future__ import annotations

import os

# With libgomp's default, threads that wait spin for milliseconds: one busy neighbour on the machine made a step 13
# times slower. A short spin costs nothing on a quiet one. It must be set before the library is loaded.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from node.engine.llamacpp.backend import STATE_FORMAT, LlamaBackend
from node.engine.llamacpp.devices import Lender, Spread, has_rpc
from node.engine.llamacpp.native import has_gpu, version
from node.engine.llamacpp.options import LlamaOptions
from node.engine.llamacpp.probe import probe

__all__ = [
    "STATE_FORMAT",
    "Lender",
    "LlamaBackend",
    "LlamaOptions",
    "Spread",
    "has_gpu",
    "has_rpc",
    "probe",
    "version",
]
