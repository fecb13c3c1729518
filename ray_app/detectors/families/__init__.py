"""One module per family of networks, each with `build(card)`; `detectors.registry` names them."""
