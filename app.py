"""The demo page: python app.py [--checkpoint X] [--port 7860]; without a checkpoint the quickstart's, or the shipped one.

Boxes on pictures, questions, point clouds, examples; the same over HTTP (lavis/serving/static/http_api.md).
"""

from __future__ import annotations

import argparse
import secrets
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lavis.common.errors import ConfigError


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", help="a checkpoint of a training, or a published one with --cfg-path")
    parser.add_argument("--cfg-path", help="the YAML file of the model, where the checkpoint does not hold it")
    parser.add_argument("--options", nargs="+", default=[], metavar="KEY=VALUE", help="override its keys")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves the whole network, behind a token")
    parser.add_argument("--token", help="what the page and the API ask for; by default one is made where --host is not local")
    parser.add_argument("--port", type=int, default=7860, help="0: any free one")
    parser.add_argument("--examples", type=Path, help="a folder of pictures and clouds to click; default: generated ones")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    begin = time.perf_counter()
    args = parse_args(argv)
    try:
        from lavis.serving.guard import LOCAL
        from lavis.serving.loading import load_captioner
        from lavis.serving.server import listen, serve

        listener = listen(args.host, args.port)
        captioner = load_captioner(args.checkpoint, cfg_path=args.cfg_path, options=args.options, device=args.device)

        token = args.token or (None if args.host in LOCAL else secrets.token_urlsafe(24))

        def ready() -> None:
            host, port = listener.getsockname()[:2]
            seconds = time.perf_counter() - begin
            print(f"http://{host}:{port} serves {captioner.checkpoint} (ready in {seconds:.1f} s)", flush=True)
            if token:
                print(f"token: {token} (the page's password; for the API the header Authorization: Bearer <token>)", flush=True)

        serve(captioner, args.examples, listener=listener, ready=ready, host=args.host, token=token)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
