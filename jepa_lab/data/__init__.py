"""The data of the book: one module per kind, each with an embedded default that needs no network."""
