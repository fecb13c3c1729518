"""The documentation site: what is made of the code at build time, and mkdocs' hooks. `make docs`
builds it into build/site.
"""
