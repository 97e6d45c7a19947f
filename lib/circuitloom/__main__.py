"""`python -m circuitloom` does the same as `circuitloom`."""

from .cli import main

if __name__ == "__main__":
    main()
