"""Where a benchmark writes: checked before it begins, not after fifteen minutes of measuring."""

import os
from pathlib import Path

from loadgen.bench.children import BenchError


def check_outputs(**paths: Path | None) -> None:
    """Every file that is wanted can be written: `json`, `html`, ... are the options' names. Raises BenchError."""
    for option, path in paths.items():
        if path is None:
            continue
        folder = path.absolute().parent
        if not folder.is_dir():
            raise BenchError(f"--{option} {path}: the directory {folder} does not exist")
        if path.is_dir():
            raise BenchError(f"--{option} {path}: is a directory; name a file in it")
        if not os.access(path if path.exists() else folder, os.W_OK):
            raise BenchError(f"--{option} {path}: may not be written")
