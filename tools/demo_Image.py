"""The caption of a picture, or the answer to a question on it.

python tools/demo_Image.py photo.jpg
python tools/demo_Image.py photo.jpg --question "what is on the left?" --checkpoint output/mine/checkpoint_best.pth
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # where lavis is not installed, it says what to do
from lavis.serving.cli import image_demo, run

if __name__ == "__main__":
    sys.exit(run(image_demo))
