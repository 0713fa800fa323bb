"""Translates CUDA sources to HIP: hipify.py OUTPUT_DIRECTORY FILE...

Keeps the files' names. An output that would not change keeps its time too, so that nothing is compiled again for it.
"""

import contextlib
import io
import shutil
import sys
import tempfile
from pathlib import Path

from torch.utils.hipify.hipify_python import hipify

output, *files = map(Path, sys.argv[1:])
output.mkdir(parents=True, exist_ok=True)
with tempfile.TemporaryDirectory() as directory:
    # In a .cu file hipify would turn std::max into ::max, which on HIP's host side is one of int: 64-bit values would be
    # cut. All copies are headers to it.
    copies = []
    for file in files:
        copy = Path(directory, file.relative_to("csrc").parent, f"{file.name}.h")
        copy.parent.mkdir(parents=True, exist_ok=True)
        copies.append(str(shutil.copy(file, copy)))
    with contextlib.redirect_stderr(io.StringIO()):  # a message that all went well
        results = hipify(
            directory,
            output_directory=directory,
            extra_files=copies,
            hip_clang_launch=True,  # clang knows <<<>>>
            show_progress=False,
        )
    for file, copy in zip(files, copies, strict=True):
        text, target = Path(results[copy].hipified_path).read_text(), output / file.relative_to("csrc")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists() or target.read_text() != text:
            target.write_text(text)
