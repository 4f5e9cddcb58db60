"""``python -m wsss_jax.cli`` is ``wsss``."""

from wsss_jax.cli import main

if __name__ == "__main__":
    main()
