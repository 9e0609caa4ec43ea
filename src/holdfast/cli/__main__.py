"""``python -m holdfast.cli``."""

from holdfast.cli import main
from holdfast.cli.output import command_name

main(prog_name=command_name())
