"""Translates CUDA sources to HIP: hipify.py OUTPUT_DIRECTORY FILE...

Files are relative to the current folder, and keep their paths in OUTPUT_DIRECTORY. An output that would not change
keeps its time too, so that nothing is compiled again for it.
"""

import contextlib
import io
import shutil
import sys
import tempfile
from pathlib import Path

from torch.utils.hipify.hipify_python import hipify

output, *files = map(Path, sys.argv[1:])
with tempfile.TemporaryDirectory() as directory:
    # In a .cu file hipify would turn std::max into ::max, which on HIP's host side takes ints: 64-bit values would be
    # cut. With the suffix .h every copy is a header to hipify, and std::max stays.
    copies = [Path(directory, file.parent, f"{file.name}.h") for file in files]
    for file, copy in zip(files, copies, strict=True):
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, copy)
    with contextlib.redirect_stderr(io.StringIO()):  # hipify reports success there
        results = hipify(
            directory,
            output_directory=directory,
            extra_files=[str(copy) for copy in copies],
            hip_clang_launch=True,  # clang knows <<<>>>
            show_progress=False,
        )
    for file, copy in zip(files, copies, strict=True):
        text, target = Path(results[str(copy)].hipified_path).read_text(), output / file
        if not target.exists() or target.read_text() != text:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
