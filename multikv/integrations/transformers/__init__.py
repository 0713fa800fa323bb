"""Transformers on multikv: a paged cache, and attention functions that read it.

Importing this module registers the attention functions `multikv` and `paged|multikv` with Transformers. The first goes
with a MultikvCache, the second with continuous batching. docs/integrations.md says which models and options are served.

Example:
    >>> from multikv.integrations.transformers import MultikvCache
    >>> model.set_attn_implementation("multikv")
    >>> model.generate(**inputs, past_key_values=MultikvCache(model.config))
"""

from .attention import multikv_attention as multikv_attention
from .attention import paged_multikv_attention as paged_multikv_attention
from .attention import register as register
from .cache import MultikvCache as MultikvCache

__all__ = ["MultikvCache", "multikv_attention", "paged_multikv_attention", "register"]

register()
