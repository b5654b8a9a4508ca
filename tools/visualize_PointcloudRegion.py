"""The published name of tools/visualize_cloud_region.py."""

from visualize_cloud_region import main

if __name__ == "__main__":
    raise SystemExit(main())
