"""`python -m multikv`: the demo."""

from multikv.demo.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
