"""The caption of a picture, or the answer to a question on it.

    python tools/demo_image.py photo.jpg
    python tools/demo_image.py photo.jpg --question "what is on the left?" --checkpoint output/mine/checkpoint_best.pth

demo_image.py and demo_Image.py, the published name, hold the same text: where a file system takes the two names for one file,
either serves.
"""

import sys

from lavis.serving.cli import image_demo, run

if __name__ == "__main__":
    sys.exit(run(image_demo))
