"""Build networks, with one module per family. `detectors.registry` lists the families."""
