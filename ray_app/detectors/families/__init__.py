"""Build the networks of detectors, with one module per family.

A family is the code that builds similar networks, such as the classifiers of timm.
`detectors.registry` lists the families.
"""
