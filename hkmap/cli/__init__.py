"""The command line: one file a command, each a sentence that the library carries out."""

from hkmap.cli.main import hkmap

main = hkmap
