"""The artefacts of vision-language parents, which `python -m analysis.vision` renders."""
