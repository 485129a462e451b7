"""Tools that a model may call: definitions, the formats of calls in families of models, and finding calls in a text."""
