"""``python -m tunebatch.cli``"""

from tunebatch.cli.main import main

main()
