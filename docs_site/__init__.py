"""Generate the documentation site: hooks of mkdocs, and pages made from the code.

`make docs` builds the site into build/site.
"""
