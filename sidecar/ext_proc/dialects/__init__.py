"""The APIs that LLM clients speak: what a request says, and its model rewritten in place.

Pure: a request in, what it says out.
"""

from sidecar.ext_proc.dialects.harness import CODING_AGENTS, HarnessBlock, tag
from sidecar.ext_proc.dialects.keys import bounded_key
from sidecar.ext_proc.dialects.options import BY_SHAPE, KEY_FIELDS, PATHS, DialectOptions
from sidecar.ext_proc.dialects.reading import LlmDialects

__all__ = [
    "BY_SHAPE",
    "CODING_AGENTS",
    "KEY_FIELDS",
    "PATHS",
    "DialectOptions",
    "HarnessBlock",
    "LlmDialects",
    "bounded_key",
    "tag",
]
