"""Tools: what a user offers a model to call, how families of models write calls, and how those are found in a text."""
