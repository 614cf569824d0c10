"""`python -m modeling_kamim` is `kamim`."""

from .commands.main import main

if __name__ == "__main__":
    main()
