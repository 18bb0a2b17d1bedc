"""The command line: one file a command, each a sentence that the library carries out.

This file is what runs first: it sees to signals and descriptors before anything slow is imported.
"""

import os
import sys

from hkmap.cli._process import open_descriptors, signals


def main() -> None:
    """Run hkmap as a program: like the group `hkmap`, and from the first moment on."""
    if sys.getfilesystemencoding() != "utf-8" and sys.executable:      # names in records are UTF-8 in every locale
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    signals.handle()
    open_descriptors()
    try:
        from hkmap.cli.main import hkmap

        hkmap()
    except BaseException as error:
        if signals.stop is None or (isinstance(error, SystemExit) and error.code):
            raise      # a stop that was dropped must not end in 0
        sys.stderr.write(f"{signals.stop.word}\n")       # while it was importing, which may hide it in an ImportError
        sys.exit(signals.stop.code)
    finally:
        signals.end()
