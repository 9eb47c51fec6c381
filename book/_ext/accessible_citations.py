"""A bibliography that screen readers can count: each entry of the list is a list item.

docutils wraps the entries in role="list" but gives them the role "doc-biblioentry", which a list may
not hold (ARIA 1.2);
axe-core rightly reports that as critical.
"""

from docutils import nodes


def visit_citation(translator, node):
    start = len(translator.body)
    type(translator).visit_citation(translator, node)
    translator.body[start:] = [
        part.replace('role="doc-biblioentry"', 'role="listitem"') for part in translator.body[start:]
    ]


def depart_citation(translator, node):
    type(translator).depart_citation(translator, node)


def setup(app):
    app.add_node(nodes.citation, override=True, html=(visit_citation, depart_citation))
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
