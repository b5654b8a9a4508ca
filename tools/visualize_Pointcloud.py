"""The published name of tools/visualize_cloud.py."""

from visualize_cloud import main

if __name__ == "__main__":
    raise SystemExit(main())
