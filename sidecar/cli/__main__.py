"""`python -m sidecar.cli` is `sidecar`."""

from sidecar.cli.main import main

if __name__ == "__main__":
    main()
