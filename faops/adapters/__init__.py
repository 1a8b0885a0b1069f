"""Adapters: faops behind the attention interfaces of other libraries, each a module imported on request."""
