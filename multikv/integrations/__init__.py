"""Inference engines on multikv, and calls of other projects as calls of multikv: docs/integrations.md.

Importing this package imports no engine. Each engine has a module of its own, which imports it.
"""
