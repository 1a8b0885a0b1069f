"""Running flash-attn's own tests against faops, from a checkout of flash-attn outside this repository.

    python -m tests.adapters.flash_attn.suite PATH/TO/flash-attention --sample 300

See docs/flash_attn.md. ``__main__`` runs one pytest per file of the suite, with ``plugin`` in it, and prints a table.
"""
