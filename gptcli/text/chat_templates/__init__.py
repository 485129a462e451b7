"""From messages to a prompt: a model's chat template, run, and what it tells of the model."""
