"""Where the tests find the project and its programs."""

import os
import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
BUILD = pathlib.Path(os.environ.get("UPGRAYEDD_BUILD", ROOT / "target/debug"))
