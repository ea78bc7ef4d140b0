"""The run-time checker of shapes and types: beartype, for which an int is a float, as for Python's
type checkers.
"""

from beartype import BeartypeConf, beartype

checker = beartype(conf=BeartypeConf(is_pep484_tower=True))
