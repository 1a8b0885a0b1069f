"""`python -m faops_cli` is the same as `faops`."""

from .main import main

if __name__ == "__main__":
    main()
