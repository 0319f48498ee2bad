"""What checks the shapes and types of annotations under test: beartype, taking an int where a float is annotated."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
